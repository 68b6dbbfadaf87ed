"""Models and runs on disk, and starting from them."""
