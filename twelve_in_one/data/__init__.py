"""Where batches come from. The one part of the package that may import TensorFlow."""
