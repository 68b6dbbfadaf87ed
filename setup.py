"""Puts the files of `configs/` into the package; all else about it is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["twelve_in_one*"]), "twelve_in_one.config_files"],
    package_dir={"twelve_in_one.config_files": "configs"},
)
