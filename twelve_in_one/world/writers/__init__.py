"""Writers of the datasets' official files, a module a family.

Each makes its sentences, a picture at a time, with the processes that it is given, and returns how
many records and pictures each split got.
"""
