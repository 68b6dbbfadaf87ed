"""The training loop and its surroundings: data preparation, compilation, final results."""
