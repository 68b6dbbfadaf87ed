"""Records on disk, and reading them in any order."""
