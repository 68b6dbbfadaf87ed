"""Readers of the official annotation files, one module per dataset or family."""
