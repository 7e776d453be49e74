"""Pictures of one's own: all those of a folder, or of a list."""

import os
import sys
from collections import namedtuple
from pathlib import Path

from cgd.data.annotations import inside, read_boxes, read_list
from cgd.data.datasets import EXTENSIONS
from cgd.system.errors import InputError

# path : str, relative to the folder of all pictures, or absolute · size : bytes · mtime : ns since 1970
# crop : (x, y, w, h) in pixels, or None · label : str, the class, or None if it is not known
Picture = namedtuple("Picture", "path size mtime crop label")

LIST_HEADER = ["image_id", "class_id"]


def find(source, data_dir=None, bbox_txt=None, class_folders=False):
    """The folder that paths are relative to, and the `Picture`s, sorted by path.

    source : a folder, which is searched with its subfolders, but neither hidden ones nor links; or a list file, with
        the header of annotations.read_list, or with a path in each line
    data_dir : folder that the paths in a list are relative to; by default that of the list
    bbox_txt : boxes of the pictures of a list with a header
    class_folders : whether the name of the folder that a picture lies in is its class

    Raises InputError if there are none, if a listed one is missing, and for an invalid list.
    """
    source = Path(source)
    if source.name.lower().endswith(EXTENSIONS) and source.is_file():
        raise InputError(f"{source}: is a picture; expected a folder of pictures, or a list with a path in each line")
    if source.is_dir():
        if data_dir or bbox_txt:
            raise InputError(f"{source}: is a folder; --data-dir and --bbox-txt are for lists")
        root, rows = source, _in_folder(source)
    else:
        if not source.is_file():
            raise InputError(f"{source}: no such file; expected a folder of pictures, or a list of them")
        root = Path(os.path.abspath(str(data_dir or source.parent)))  # `inside` would join a relative one twice
        rows = _in_list(source, root, bbox_txt)
    root, found = os.path.abspath(str(root)), {}
    for path, crop, label in rows:
        place = os.path.join(root, path)
        try:
            status = os.stat(place)
        except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
            reason = getattr(error, "strerror", None) or error
            if not source.is_dir():
                hint = "paths in a list are relative to its folder, or to --data-dir"
                raise InputError(f"{source}: lists {place!r}: {reason}; {hint}")
            print(f"skipped: {place}: {reason}", file=sys.stderr)  # such as a link to nowhere
            continue
        label = os.path.basename(os.path.dirname(place)) if class_folders else label
        found[path, crop] = Picture(path, status.st_size, status.st_mtime_ns, crop, label)
    if not found:
        raise InputError(f"{source}: no pictures; expected {' '.join(EXTENSIONS)} files")
    return root, sorted(found.values(), key=lambda picture: (picture.path, picture.crop or ()))


def _in_folder(folder):
    """(path, None, None) of every picture; says how many other files, and links to folders, there are."""
    rows, others, links = [], [], []
    for parent, folders, names in os.walk(str(folder), onerror=_cannot_be_listed):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = os.path.relpath(parent, str(folder))
        links += [name for name in folders if os.path.islink(os.path.join(parent, name))]
        for name in names:
            if name.startswith("."):
                continue
            path = name if below == "." else os.path.join(below, name)
            if name.lower().endswith(EXTENSIONS):
                rows.append((path, None, None))
            else:
                others.append(path)
    if links:
        print(f"{folder}: ignored {len(links)} links to folders, among them {min(links)}", file=sys.stderr)
    if others:
        text = f"ignored {len(others)} files that are not {' '.join(EXTENSIONS)}, among them {min(others)}"
        print(f"{folder}: {text}", file=sys.stderr)
    return rows


def _cannot_be_listed(error):
    raise error  # an OSError that names the folder


def _in_list(file, root, bbox_txt):
    """(path, box, class) of every row of a list file."""
    try:
        lines = file.read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n")
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}")
    if next((line.split()[:2] for line in lines if line.strip()), None) != LIST_HEADER:
        if bbox_txt:
            raise InputError(f"{file}:1: expected the header 'image_id class_id path', because --bbox-txt is given")
        return [(_relative(_path_in(line, root), root), None, None) for line in lines if line.strip()]
    boxes, rows = read_boxes(bbox_txt) if bbox_txt else None, []
    for number, image_id, class_id, path in read_list(str(file)):
        if boxes is not None and image_id not in boxes:
            raise InputError(f"{file}:{number}: image {image_id} has no bounding box")
        path = _relative(inside(root, path, file, number), root)
        rows.append((path, boxes[image_id] if boxes else None, str(class_id)))
    return rows


def _path_in(line, root):
    """The path in a line of a list: the whole line if there is such a file, otherwise without blanks around it."""
    return line if os.path.exists(os.path.join(str(root), line)) else line.strip()


def _relative(path, root):
    """The path relative to `root` if it is in that folder, otherwise absolute."""
    path, root = os.path.abspath(os.path.join(str(root), path)), os.path.abspath(str(root))
    return os.path.relpath(path, root) if path.startswith(root.rstrip("/") + "/") else path
