"""twelve_in_one: one two-stream vision-and-language model for twelve datasets, in JAX and Flax.

Importing the package is cheap: JAX is imported by the modules that need it, TensorFlow only by
`twelve_in_one.data`, torch only to read or write a `.bin` file.
"""

__version__ = "0.1.0"
