"""Packages that only some commands need. They are imported where they are used."""

import importlib

from cgd.system.errors import InputError


def optional_package(name, install=None):
    """The package `name`. Raises InputError with the command that installs it, as `install` if that name differs.

    The command names numpy, too: packages that these need may ask for numpy 2, and pip would replace MXNet's.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"this needs the package {name} ({error}): pip install {install or name} 'numpy<2'")
