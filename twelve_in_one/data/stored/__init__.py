"""Records on disk, and readers of them in any order."""
