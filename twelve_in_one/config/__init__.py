"""Settings of a run: definitions, defaults, checks and differences."""
