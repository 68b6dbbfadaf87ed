"""Paths on the command line."""

import argparse
import os
from pathlib import Path


def expand(text: str) -> str:
    """Expands "~" or "~name" at the start of a path to the home folder.

    Shells do so themselves, but not after "=" or ":", as in --workdir=~/run.
    """
    return os.path.expanduser(text)


def local_path(text: str) -> Path:
    """A local path, for `type=` of an option; "~" is expanded.

    Raises:
      argparse.ArgumentTypeError: an address such as gs://bucket/folder, which pathlib would treat
        as a local folder called "gs:".
    """
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text}: mount the bucket, and give its path")
    return Path(expand(text))
