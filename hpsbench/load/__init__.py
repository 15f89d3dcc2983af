"""Requests: encoded once, sent on a schedule, recorded. This room never sees a server's process."""
