"""Writing files so that whatever happens, a file is whole or as it was before."""

import os
from contextlib import contextmanager
from pathlib import Path

from cgd.system.errors import InputError


@contextmanager
def replacing(path):
    """Gives a path beside `path` to write to; it takes the place of `path` when the block ends without an error.

    The name keeps its ending, for writers that choose a format by it. Raises InputError if it cannot be written.
    """
    path = Path(path)
    part = path.with_name(f".part-{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with open(part, "rb+") as file:  # on the disk before it takes the name, so that a power cut leaves one of both
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})")
    finally:
        if part.exists():
            part.unlink()


def must_be_writable(path):
    """Raises InputError where `path` could not be written later: better now than after hours of work."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: is a folder; expected a file's name")
    part = path.with_name(f".part-{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        part.unlink()
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})")
