"""Readers of the official annotation files, one module a dataset or family."""
