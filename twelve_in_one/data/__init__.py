"""Data, from official files to batches. The only part of the package that may import TensorFlow."""
