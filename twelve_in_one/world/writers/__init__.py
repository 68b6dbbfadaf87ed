"""Writers of the datasets' official files, one module per family.

Each makes its sentences, one picture at a time, with the given processes, and returns the numbers
of records and pictures in each split.
"""
