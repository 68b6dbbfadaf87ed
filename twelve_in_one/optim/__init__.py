"""Optimizers, learning rates over time, and their assignment to parameters."""
