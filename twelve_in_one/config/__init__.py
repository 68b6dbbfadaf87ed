"""Settings of a run: which there are, their defaults, their checks and their differences."""
