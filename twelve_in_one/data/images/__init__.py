"""Pictures as pixels: decoding and augmentation as TensorFlow graph operations."""
