"""Scores of models: by row, by ranking, and complete."""
