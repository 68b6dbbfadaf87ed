"""Readers of file formats, for files from strangers; nothing in a file is ever run."""
