"""Readers of annotation files: text lists, bounding boxes and MATLAB files, as checked rows.

Errors are InputErrors that name the file and the line. Windows line ends, a byte order mark, blank lines and repeated
spaces between columns are accepted.
"""

import os
import re
import unicodedata
from pathlib import Path

from cgd.data.matlab import read_structs
from cgd.system.errors import InputError

HINT = "check --data-dir, and --dataset: `folders` reads class folders, `lists` list files"
MAX_COORDINATE = 10**6  # pixels; larger values come from a shifted column or a lost decimal point
EXTRA_COLUMNS = {"view_id", "super_class_id"}  # columns that other lists have, ignored here

_INTEGER = re.compile(r"[0-9]{1,18}")
_NUMBER = re.compile(r"[-+]?[0-9]{1,18}(\.[0-9]*)?")


def read_rows(file, columns):
    """[(line number, fields)] of the lines of a text file that are not blank, each with `columns` fields.

    The last field is the rest of the line, so that paths may contain spaces.
    """
    return _split_columns(_lines(file), columns, file)


def read_numbered(file):
    """{id: (line number, rest of the line)} from rows `id rest`, in file order; ids must be unique."""
    table = {}
    for number, (word, rest) in read_rows(file, 2):
        key = whole_number(word, file, number)
        if key in table:
            raise InputError(f"{file}:{number}: image {key} is listed twice")
        table[key] = number, rest.strip()
    return table


def read_boxes(file):
    """{image_id: (x, y, w, h)} from rows `image_id x y w h`, in pixels; decimals are truncated, as the authors do."""
    boxes = {}
    for number, row in read_rows(file, 5):
        image_id = whole_number(row[0], file, number)
        if image_id in boxes:
            raise InputError(f"{file}:{number}: image {image_id} already has a box")
        boxes[image_id] = checked_box([_pixels(word, file, number) for word in row[1:]], file, number)
    return boxes


def read_list(file):
    """[(line number, image_id, class_id, path)] of a list: a header, then one row per image.

    The header is `image_id class_id path` (the authors' evaluation code), optionally with `view_id` (their later code)
    or `super_class_id` (SOP's own lists) before the path.
    """
    lines = _lines(file)
    header = lines[0][1].split()
    if header[:2] != ["image_id", "class_id"] or header[-1] != "path" or not set(header[2:-1]) <= EXTRA_COLUMNS:
        raise InputError(f"{file}:{lines[0][0]}: expected the header 'image_id class_id path'")
    rows, seen = [], set()
    for number, row in _split_columns(lines[1:], len(header), file):
        image_id, class_id = [whole_number(word, file, number) for word in row[:-1]][:2]
        path = row[-1].strip()
        for key, name in ((image_id, f"image {image_id}"), (os.path.normpath(path), repr(path))):
            if key in seen:
                raise InputError(f"{file}:{number}: {name} is listed twice")
            seen.add(key)
        rows.append((number, image_id, class_id, path))
    if not rows:
        raise InputError(f"{file}: lists no images")
    return rows


def read_partition(file):
    """[(line number, path, item, status)] of In-shop's list_eval_partition.txt: a count, a header, a row per image.

    status : "train", "query" or "gallery".
    """
    lines = _lines(file)
    if len(lines) < 2 or lines[1][1].split() != ["image_name", "item_id", "evaluation_status"]:
        raise InputError(f"{file}: expected a count, then the header 'image_name item_id evaluation_status'")
    count = whole_number(lines[0][1].strip(), file, lines[0][0])
    rows, seen = [], set()
    for number, line in lines[2:]:
        words = line.rsplit(None, 2)
        if len(words) != 3 or words[2] not in ("train", "query", "gallery"):
            raise InputError(f"{file}:{number}: expected a path, an item id, and train, query or gallery")
        path = words[0].strip()
        if os.path.normpath(path) in seen:
            raise InputError(f"{file}:{number}: {path!r} is listed twice")
        seen.add(os.path.normpath(path))
        rows.append((number, path, words[1], words[2]))
    if len(rows) != count:
        raise InputError(f"{file}:1: announces {count} images, found {len(rows)}; the file may be truncated")
    return rows


def read_cars(file, path_field):
    """[(number, path, class, box)] from the struct array `annotations` of one of Cars196's MATLAB files.

    path_field : "relative_im_path" in cars_annos.mat, "fname" in the devkit's two files
    number : index of the annotation, from 1, in place of a line number
    box : (x1, y1, x2 - x1, y2 - y1); the lists of the authors' later code convert corners to sizes in this way
    """
    must_be_file(file)
    fields = [path_field, "class", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2"]
    rows = []
    for number, values in enumerate(read_structs(file, "annotations", fields), 1):
        path, label, *corners = [_only(field, file, number) for field in values]
        if not isinstance(path, str):
            raise InputError(f"{file}:{number}: expected a file name, found {path!r}")
        label, x1, y1, x2, y2 = (_int_value(value, file, number) for value in (label, *corners))
        rows.append((number, path, label, checked_box([x1, y1, x2 - x1, y2 - y1], file, number)))
    if not rows:
        raise InputError(f"{file}: contains no annotations")
    return rows


def must_be_file(file):
    """Raises InputError if `file` does not exist or is not a file."""
    if not Path(file).is_file():
        raise InputError(f"{file}: no such file; {HINT}")


def whole_number(word, file, number):
    """Converts a string of digits to int. Raises InputError, naming line `number`, for anything else."""
    if _INTEGER.fullmatch(word):
        return int(word)
    raise InputError(f"{file}:{number}: expected a whole number, found {word!r}")


def checked_box(box, file, number):
    """The box (x, y, w, h) as a tuple. Raises InputError if it has no area or cannot lie inside an image."""
    x, y, w, h = box
    if w < 1 or h < 1:
        raise InputError(f"{file}:{number}: the box has no area ({w} x {h} pixels)")
    if x < 0 or y < 0 or max(box) > MAX_COORDINATE:
        raise InputError(f"{file}:{number}: the box {tuple(box)} lies outside the image")
    return x, y, w, h


def inside(folder, path, file, number):
    """Joins the data folder and the path of an image, as str. Raises InputError if it points outside the folder."""
    if any(unicodedata.category(letter) == "Cc" for letter in path):  # control characters
        raise InputError(f"{file}:{number}: invalid file name {path!r}")
    if path.startswith("/") or ".." in path.split("/"):
        raise InputError(f"{file}:{number}: {path!r} points outside the data folder")
    return f"{folder}/{path}"


def _lines(file):
    """[(line number, line)] of the lines of a text file that are not blank. Raises InputError if there are none."""
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}; {HINT}")
    except UnicodeDecodeError:
        raise InputError(f"{file}: not a UTF-8 text file")
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise InputError(f"{file}: empty file")
    return lines


def _split_columns(lines, columns, file):
    rows = [(number, line.split(None, columns - 1)) for number, line in lines]
    for number, row in rows:
        if len(row) != columns:
            raise InputError(f"{file}:{number}: expected {columns} columns, found {len(row)}")
    return rows


def _pixels(word, file, number):
    if not _NUMBER.fullmatch(word):
        raise InputError(f"{file}:{number}: expected a number, found {word!r}")
    return int(float(word))


def _only(values, file, number):
    if len(values) != 1:
        raise InputError(f"{file}:{number}: expected a single value per field")
    return values[0]


def _int_value(value, file, number):
    if isinstance(value, (int, float)) and value == value and abs(value) <= MAX_COORDINATE:
        return int(value)
    raise InputError(f"{file}:{number}: expected a number, found {value!r}")
