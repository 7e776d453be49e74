"""Atomic writing of files: after an interruption, a file is either complete or unchanged."""

import os
from contextlib import contextmanager, suppress
from pathlib import Path

from cgd.system.errors import InputError


@contextmanager
def replacing(path):
    """Yields a temporary path to write to, which replaces `path` when the block ends without an error.

    It has the same extension, for writers that choose the format by it. A link stays one: the file that it leads to is
    replaced. Raises InputError if it cannot be written, and for a device or a pipe.
    """
    _must_be_file(path)
    target = Path(os.path.realpath(str(path)))
    part = _beside(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield part
        to_disk(part)  # before the rename, so that it survives a power failure
        os.replace(part, target)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})")
    finally:
        if part.exists():
            part.unlink()


def _beside(target):
    """A path for the parts of a file. Random, because processes in two containers can have the same number."""
    return target.with_name(f".part-{os.urandom(4).hex()}-{target.name}")


def new_folder(parent, name):
    """Creates and returns the first of NAME-1, NAME-2, ... that does not exist; so two runs never choose the same."""
    parent.mkdir(parents=True, exist_ok=True)
    for number in range(1, 10**6):
        folder = parent / f"{name}-{number}"
        with suppress(FileExistsError):
            folder.mkdir()
            return folder


def to_disk(path):
    """Returns when the disk has what was written to a file."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def check_output(flag, path, endings, inputs=()):
    """Raises InputError if an output file cannot be written, or is not meant to be one.

    flag : the word of the command line that gives it, for the message
    endings : what its name may end with, as in (".png", ".jpg"). So a forgotten FILE cannot be the next word, a picture
    inputs : paths of files that the command reads
    """
    must_be_writable(path)
    if Path(path).suffix not in endings:
        raise InputError(f"{flag} {path}: expected a name that ends with {' or '.join(endings)}")
    if os.path.realpath(path) in map(os.path.realpath, inputs):
        raise InputError(f"{flag} {path}: is a file that this command reads; choose another name")


def must_be_writable(path):
    """Raises InputError if `path` cannot be written, so that this is known before hours of work. Creates no folders."""
    _must_be_file(path)
    path = Path(os.path.realpath(str(path)))
    try:
        folder = next(parent for parent in path.parents if parent.exists())
        part = _beside(folder / path.name)
        part.touch()
        part.unlink()
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})")


def _must_be_file(path):
    """Raises InputError for a path that exists and is no file: a rename would replace a device for all programs."""
    path = Path(path)
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is {'a folder' if path.is_dir() else 'a device or a pipe'}; expected a file name")
