"""Models as functions for other programs."""
