"""twelve_in_one: one two-stream vision-and-language model for twelve datasets, in JAX and Flax.

Importing the package is cheap: neither JAX, TensorFlow nor torch is imported until a module that needs it is.
"""

__version__ = "0.1.0"
