"""Optimizers, learning rates over time, and which parameters have which."""
