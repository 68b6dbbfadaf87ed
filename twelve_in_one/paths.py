"""Paths on the command line."""

import argparse
from pathlib import Path


def local_path(text: str) -> Path:
    """A path of a file system, for `type=` of an option.

    Raises:
      argparse.ArgumentTypeError: an address such as gs://bucket/folder, which pathlib would take
        for a local folder called "gs:".
    """
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text}: mount the bucket, and give its path")
    return Path(text)
