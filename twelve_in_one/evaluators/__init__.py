"""Scores of models: by row, by ranking, everything together."""
