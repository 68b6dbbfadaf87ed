"""Readers of file formats that strangers wrote; nothing in a file is ever run."""
