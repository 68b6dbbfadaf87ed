"""Turns records into the arrays of a batch."""
