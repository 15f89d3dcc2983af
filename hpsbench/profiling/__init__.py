"""Where the time of a lookup goes: stages asked in turn, and what each tier answered."""
