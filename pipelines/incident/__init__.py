"""Incidents: what was decided around a moment, kept whole; the same decisions made again offline; and a postmortem."""
