"""Paths on the command line."""

import argparse
import os
from pathlib import Path


def expand(text: str) -> str:
    """The path with the home folder for "~" or "~name" at its start.

    Shells do so themselves, but not behind "=" or ":", as in --workdir=~/run.
    """
    return os.path.expanduser(text)


def local_path(text: str) -> Path:
    """A path of a file system, for `type=` of an option; "~" is expanded.

    Raises:
      argparse.ArgumentTypeError: an address such as gs://bucket/folder, which pathlib would take
        for a local folder called "gs:".
    """
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text}: mount the bucket, and give its path")
    return Path(expand(text))
