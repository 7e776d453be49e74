"""An index: a folder that holds the descriptors of many pictures, to be searched, and to be kept up to date.

    index.json     the network (its name and a checksum), how pictures are prepared, the folder that they lie in
    items.jsonl    a line for each picture: path, size, mtime, crop and class, sorted by path
    vectors.npy    (N, dim) float32 or float16, in the same order

While pictures are described, each process appends to a pair of files of its own in the folder .parts: the vectors
first, then their lines. Whatever ends it, complete lines with a vector each are kept. `Index.publish` then writes the
three files anew into the folder .new, index.json last, and moves them to their places, index.json last again: so an
index.json in .new means that the move was begun, and whoever opens the index for writing ends it.

This module does not import MXNet.
"""

import fcntl
import hashlib
import json
import operator
import os
import shutil
from collections.abc import Sequence
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path

import numpy as np

from cgd.data.pictures import Picture
from cgd.network.descriptions import is_onnx
from cgd.system import files
from cgd.system.errors import InputError

VECTORS, ITEMS, FACTS = "vectors.npy", "items.jsonl", "index.json"  # in the order in which they are moved
PARTS, NEW, LOCK = ".parts", ".new", ".lock"
PREPARATION = ("image_width", "image_height", "mean", "std", "dim")
SAME = ("checksum", *PREPARATION, "dtype", "stored")  # facts that all vectors of an index share
STORED = ("float32", "float16")
BLOCK = 1 << 14  # rows that are copied at a time
DAMAGED = "it is damaged: describe the pictures again, into a new folder"
AGAIN = "run the same command of cgd.describe again"


def checksum(name):
    """SHA-256 of the files of a network: the prefix of a checkpoint, or an ONNX file."""
    digest = hashlib.sha256()
    for ending in ("",) if is_onnx(name) else ("-symbol.json", "-0000.params"):
        with open(name + ending, "rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    return digest.hexdigest()


def facts_of(name, description):
    """The facts of an index that depend on the network and its description."""
    described = {key: description[key] for key in PREPARATION}
    return {"name": os.path.abspath(name), "checksum": checksum(name), **described}


class Items(Sequence):
    """The `Picture`s of an items file, which is read line by line when they are asked for."""

    def __init__(self, file):
        self.file = file
        self.data = np.asarray(np.memmap(file, np.uint8, "r")) if os.path.getsize(file) else np.zeros(0, np.uint8)
        self.ends = np.flatnonzero(self.data == ord("\n"))

    def __len__(self):
        return len(self.ends)

    def __getitem__(self, number):
        if isinstance(number, slice):
            return [self[each] for each in range(len(self))[number]]
        number = range(len(self))[number]
        start = self.ends[number - 1] + 1 if number else 0
        try:
            return _picture(self.data[start : self.ends[number]].tobytes())
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.file}:{number + 1}: cannot be read ({error}); {DAMAGED}")


def read(folder):
    """Facts (dict), `Items` and vectors (N, dim), mapped from the file, of a finished index.

    Raises InputError if there is none, or if its files do not belong together.
    """
    folder = Path(folder)
    missing = next((name for name in (FACTS, ITEMS, VECTORS) if not (folder / name).is_file()), None)
    if missing == FACTS or (missing and not (folder / NEW / FACTS).exists()):  # .new: they are being moved
        begun = (folder / PARTS).is_dir()
        hint = f"it is not finished: {AGAIN}, without --shard" if begun else "python -m cgd.describe writes one"
        raise InputError(f"{folder}: no index ({missing} is missing); {hint}")
    before = None
    try:
        before = _state(folder)
        facts = json.loads((folder / FACTS).read_text())
        items, vectors = Items(folder / ITEMS), np.load(str(folder / VECTORS), mmap_mode="r")
        fits = len(items) == facts["count"] and vectors.shape == (facts["count"], facts["dim"])
        if not fits or (folder / NEW / FACTS).exists() or _state(folder) != before:  # in this order
            raise ValueError("its files are not of one time")
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}: not a complete index ({error}); {_advice(folder, before)}")
    return facts, items, vectors


def _advice(folder, before):
    """What to do about an index that cannot be read. before : its `_state` when the reading began"""
    with suppress(OSError):
        if not (folder / NEW).exists() and _state(folder) == before:
            return DAMAGED
    return AGAIN  # another process is publishing it, or was interrupted


class Index:
    """An index to write to. The constructor ends a move that was interrupted, and reads what was described before.

    facts : dict, those of SAME, and the "name" of the network

    Raises InputError if the index is of another network or preparation, or if another process is publishing it.
    """

    def __init__(self, folder, facts):
        self.folder, self.facts = Path(folder), facts
        if self.folder.exists() and not _may_become_index(self.folder):
            raise InputError(f"{folder}: is no index, and not empty; give the name of a new folder by -o")
        with _writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock = open(str(self.folder / LOCK), "a+")
        self._take(fcntl.LOCK_SH)  # every process that describes has it
        if (self.folder / NEW / FACTS).exists():
            self._move()
            self._take(fcntl.LOCK_SH)
        with _writing(self.folder):  # under the lock: who publishes removes it
            (self.folder / PARTS).mkdir(exist_ok=True)
        self._look()

    def check_pictures(self, pictures, root):
        """Raises InputError if all published pictures would be dropped, as when -o names another folder's index."""
        if not self.published:
            return
        if self.published["folder"] == root:  # all files may have been changed, or replaced by others
            paths = {picture.path for picture in pictures}
            known = any(item.path in paths or not os.path.exists(os.path.join(root, item.path)) for item in self.items)
        else:  # it may have been moved
            known = any(self.rows.get(_key(picture), (None,))[0] == 0 for picture in pictures)  # 0: the published
        if not known:
            has = f"holds other pictures, of {self.published['folder']}"
            raise InputError(f"{self.folder}: {has}; give another folder by -o, or delete this one")

    def missing(self, pictures):
        """Those of the pictures that have no vector yet: new ones, and files that were changed."""
        return [picture for picture in pictures if _key(picture) not in self.rows]

    def part(self, name):
        """A `Part` that appends to the index. Raises InputError if another process has it."""
        return Part(self.folder / PARTS / name, self.facts)

    def publish(self, pictures, root):
        """Writes the three files, of those of the pictures that have a vector, in this order.

        Vectors of other pictures are dropped. Nothing is lost if it is interrupted. Returns the number of pictures, and
        that of the paths that were dropped. Raises InputError if another process is writing to the index, or if no
        picture has a vector.
        """
        self._take(fcntl.LOCK_EX)
        self._look()  # now at what other processes have described, too
        pictures = [picture for picture in pictures if _key(picture) in self.rows]
        if not pictures:
            raise InputError(f"{self.folder}: none of the pictures could be read")
        dropped = {path for path, *_ in self.rows}.difference(picture.path for picture in pictures)
        facts = dict(self.facts, folder=root, count=len(pictures))
        if self.published != facts or any(map(operator.ne, pictures, self.items)):
            self._write(pictures, facts)
        with _writing(self.folder):
            shutil.rmtree(str(self.folder / PARTS))
        self.lock.close()
        return len(pictures), len(dropped)

    def _write(self, pictures, facts):
        """Writes the three files into .new and moves them."""
        new = self.folder / NEW
        with _writing(self.folder):
            shutil.rmtree(str(new), ignore_errors=True)
            new.mkdir()
            with open(str(new / VECTORS), "wb") as file:
                shape = len(pictures), self.facts["dim"]
                write_vectors(file, shape, self.facts["stored"], self._gathered(pictures))
                _to_disk(file)
            with open(str(new / ITEMS), "w") as file:
                file.writelines(map(_line, pictures))
                _to_disk(file)
            with files.replacing(new / FACTS) as part:
                part.write_text(json.dumps(facts, indent=1) + "\n")
            self._move()

    def _take(self, kind):
        busy = f"another process is writing to this index; {AGAIN} when it has ended"
        _lock(self.lock, kind, self.folder, busy)

    def _move(self):
        """Moves the files of .new to their places."""
        self._take(fcntl.LOCK_EX)
        if not (self.folder / NEW / FACTS).exists():  # another process has moved them before this one had the lock
            return
        for name in (VECTORS, ITEMS, FACTS):
            with suppress(FileNotFoundError):  # it was moved before the interruption
                os.replace(str(self.folder / NEW / name), str(self.folder / name))
        shutil.rmtree(str(self.folder / NEW))

    def _look(self):
        """Reads which pictures have a vector. rows: {key: (number of the source, row)}, sources: arrays of vectors."""
        self.rows, self.sources, self.published, self.items = {}, [], None, []
        if (self.folder / FACTS).exists():
            self.published, self.items, vectors = read(self.folder)
            _must_be_same(self.folder, self.published, self.facts)
            self._add(self.items, vectors)
        for file in sorted((self.folder / PARTS).glob("*.jsonl")):
            self._add(*read_part(file.with_suffix(""), self.facts))

    def _add(self, items, vectors):
        for row, picture in enumerate(items):  # the published row stays: `check_pictures` asks for it
            self.rows.setdefault(_key(picture), (len(self.sources), row))
        self.sources.append(vectors)

    def _gathered(self, pictures):
        """Yields blocks of the pictures' vectors."""
        places = np.array([self.rows[_key(picture)] for picture in pictures])
        for start in range(0, len(places), BLOCK):
            source, row = places[start : start + BLOCK].T
            block = np.empty((len(row), self.facts["dim"]), self.facts["stored"])
            for number in np.unique(source):
                block[source == number] = self.sources[number][row[source == number]]
            yield block


class Part:
    """What one process adds to an index: NAME.f, vectors one after the other, and NAME.jsonl, facts and their lines.

    Incomplete ends, as an interruption leaves them, are cut off first.
    """

    def __init__(self, prefix, facts):
        self.folder = prefix.parent.parent
        with _writing(self.folder):
            self.vectors, self.items = (open(f"{prefix}{ending}", "ab+") for ending in (".f", ".jsonl"))
        busy = f"another process describes the same pictures (part {prefix.name})"
        _lock(self.vectors, fcntl.LOCK_EX, self.folder, busy)
        self.stored, self.dim = facts["stored"], facts["dim"]
        lines, count = _complete(prefix, facts)
        with _writing(self.folder):
            self.vectors.truncate(count * _row_bytes(facts))
            self.items.truncate(sum(map(len, lines[: count + 1])))
            if not lines:
                self.items.write(json.dumps(facts).encode() + b"\n")
            self._flush()

    def append(self, pictures, vectors):
        """Adds pictures and their vectors (n, dim). When this returns, a kill does not lose them.

        Raises InputError for vectors of another length than the description of their network says.
        """
        vectors = np.asarray(vectors, self.stored)
        if vectors.shape[1] != self.dim:
            raise InputError(f"the network gives {vectors.shape[1]} dimensions, but its description says {self.dim}")
        with _writing(self.folder):
            self.vectors.write(vectors.tobytes())
            self._flush()
            self.items.write("".join(map(_line, pictures)).encode())
            self._flush()

    def close(self):
        with _writing(self.folder):
            _to_disk(self.vectors)
            _to_disk(self.items)
        self.vectors.close()
        self.items.close()

    def _flush(self):
        self.vectors.flush()
        self.items.flush()


def write_vectors(file, shape, dtype, blocks):
    """Writes blocks of vectors as a .npy file. Not through a mapped file, whose writer dies if the disk is full."""
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(file, header)
    for block in blocks:
        file.write(block.tobytes())


def read_part(prefix, facts):
    """The pictures and the vectors (N, dim) of a part, without incomplete ends."""
    lines, count = _complete(prefix, facts, binding=_in_use(prefix))
    with _parsing(prefix):
        pictures = [_picture(line) for line in lines[1 : count + 1]]
    return pictures, _part_vectors(prefix, facts)[:count]


def _in_use(prefix):
    """Whether another process has the part, or this one."""
    with open(f"{prefix}.f", "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # a file system without locks, on which no part can be made
            pass
    return False


def _complete(prefix, facts, binding=False):
    """The complete lines of a part, facts first, and the number of pictures that have a line and a vector.

    binding : whether facts alone must be the same; those that a command which failed has left bind nobody

    After a power failure, a file may have its length but zeros in it: all from there on is lost. A descriptor is never
    zero, but the one before the first of zeros may end in them.
    """
    lines = Path(f"{prefix}.jsonl").read_bytes().splitlines(keepends=True)
    lines = list(takewhile(lambda line: line.endswith(b"\n") and b"\0" not in line, lines))
    if not lines or not (binding or len(lines) > 1 and os.path.getsize(f"{prefix}.f")):
        return [], 0
    with _parsing(prefix):
        _must_be_same(prefix.parent.parent, json.loads(lines[0]), facts)
    vectors = _part_vectors(prefix, facts)[: max(0, len(lines) - 1)]
    zero = np.flatnonzero(~np.any(vectors, axis=1))
    return lines, max(0, int(zero[0]) - 1) if len(zero) else len(vectors)


@contextmanager
def _parsing(prefix):
    """Turns the error for a line of a part that is no line of this program into an InputError."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        hint = f"remove it and {prefix.name}.f beside it; their pictures are then described again"
        raise InputError(f"{prefix}.jsonl: is damaged ({error}); {hint}")


def _part_vectors(prefix, facts):
    rows = os.path.getsize(f"{prefix}.f") // _row_bytes(facts)
    if not rows:  # which cannot be mapped
        return np.zeros((0, facts["dim"]), facts["stored"])
    return np.memmap(f"{prefix}.f", facts["stored"], "r", shape=(rows, facts["dim"]))


def _row_bytes(facts):
    return facts["dim"] * np.dtype(facts["stored"]).itemsize


def _must_be_same(folder, found, facts):
    """Raises InputError unless both facts are of the same network, preparation and type."""
    for key in SAME:
        if found.get(key) != facts[key]:
            how = "by another network" if key == "checksum" else f"with {key} {found.get(key)}, not {facts[key]}"
            raise InputError(f"{folder}: its pictures were described {how}; give another folder by -o")


def _may_become_index(folder):
    if not folder.is_dir():
        return False
    names = set(os.listdir(str(folder))) - {LOCK}
    return not names or bool({PARTS, NEW} & names) or {FACTS, ITEMS, VECTORS} <= names


def _key(picture):
    return picture.path, picture.size, picture.mtime, picture.crop


def _line(picture):
    return json.dumps(dict(picture._asdict())) + "\n"


def _picture(line):
    fields = json.loads(line)
    fields["crop"] = fields["crop"] and tuple(fields["crop"])
    return Picture(**fields)


def _state(folder):
    """What differs when an index has been published anew."""
    status = os.stat(str(folder / FACTS))
    return status.st_ino, status.st_mtime_ns


def _lock(file, kind, folder, busy):
    """Locks an open file. Raises InputError with the text `busy` if another process has it."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{folder}: {busy}")
    except OSError as error:
        why = f"its file system has no flock ({error.strerror})"
        raise InputError(f"{folder}: cannot be locked, because {why}; make the index on another one")


def _to_disk(file):
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def _writing(folder):
    """Turns an OSError, as of a full disk, into an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror or error}); {AGAIN} then, nothing is lost")
