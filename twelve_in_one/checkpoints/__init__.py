"""Everything that is kept of models and runs, and beginning with it."""
