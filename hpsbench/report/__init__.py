"""Measurements and verdicts as a reader wants them; no mathematics here."""
