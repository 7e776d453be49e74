"""Data sets, as records: which picture, of which identity, in which box.

A reader checks what it reads; whatever does not fit is an InputError that names the file and the line.
"""

from collections import namedtuple
from pathlib import Path

from cgd import birds
from cgd.errors import InputError

# path : Path of the picture · identity : int from 0, within its half of the data set
# box : (x, y, w, h) in whole pixels, or None · image_id : int, as the data set numbers it
Record = namedtuple("Record", "path identity box image_id")

# train, test : lists of Record · ranks : the K at which Recall@K is reported
Dataset = namedtuple("Dataset", "name train test ranks")

RANKS = (1, 2, 4, 8)


def cub200(folder):
    """CUB-200-2011 from its official annotation files: classes 1-100 for training, 101-200 for test."""
    return _read_cub_layout("cub200", folder, train_classes=100)


def demo(folder):
    """The demo set, drawn where it is missing, in CUB's layout: the first half of its classes is for training."""
    if not Path(folder).exists():
        print("drawing the demo set: {}".format(folder))
        birds.draw_demo(folder)
    classes = len(_rows(Path(folder) / "classes.txt", 2))
    return _read_cub_layout("demo", folder, train_classes=classes // 2)


def from_lists(folder, train_txt, test_txt, bbox_txt=None, name="lists"):
    """A data set from list files in the format of the authors' evaluation code.

    train_txt, test_txt : a header `image_id class_id path`, then a row an image; paths are relative to `folder`.
        `train_txt` may be None for an evaluation.
    bbox_txt : rows `image_id x y w h`, no header, for every listed image; None for no boxes.
    """
    boxes = read_boxes(bbox_txt) if bbox_txt else None
    train = read_list(train_txt, folder, boxes) if train_txt else []
    return Dataset(name, train, read_list(test_txt, folder, boxes), RANKS)


READERS = {"cub200": cub200, "demo": demo}
FOLDERS = {"cub200": "./data/CUB_200_2011", "demo": "./data/demo"}


def load(name, folder=None, train_txt=None, test_txt=None, bbox_txt=None):
    """The data set that a command's flags name: from list files where they are given, else by its own reader.

    Raises InputError when files are missing or do not fit; pictures are looked up, not opened.
    """
    folder = Path(folder or FOLDERS.get(name, "."))
    if bool(train_txt or bbox_txt) and not test_txt:
        raise InputError("--train-txt and --bbox-txt go with --test-txt")
    if test_txt:
        dataset = from_lists(folder, train_txt, test_txt, bbox_txt, name)
    elif name in READERS:
        dataset = READERS[name](folder)
    else:
        raise InputError("--dataset {}: give its list files, --train-txt and --test-txt".format(name))
    _check_pictures(dataset)
    return dataset


def statistics(dataset):
    """The table of classes and images, as the authors' evaluation code prints it."""
    rule = "+------------------------------+"
    halves = [("Train", dataset.train), ("Test", dataset.test)]
    counts = [(name, count_identities(records), len(records)) for name, records in halves]
    total = ("Total", counts[0][1] + counts[1][1], counts[0][2] + counts[1][2])
    rows = ["| {:<7} |    {:5d} | {:7d} |".format(*count) for count in counts + [total]]
    lines = ["###### Dataset Statistics ######", rule, "| Subset  | #Classes | #Images |", rule]
    return "\n".join(lines + rows[:2] + [rule] + rows[2:] + [rule])


def count_identities(records):
    return len({record.identity for record in records})


def without_boxes(records):
    """The same records, whole pictures."""
    return [record._replace(box=None) for record in records]


def read_boxes(file):
    """{image_id: (x, y, w, h)} from rows `image_id x y w h`; numbers are cut to whole pixels, as the authors do."""
    boxes = {}
    for number, row in _rows(file, 5):
        image_id = _whole_number(row[0], file, number)
        if image_id in boxes:
            raise InputError("{}:{}: image {} has a box already".format(file, number, image_id))
        boxes[image_id] = tuple(_pixels(word, file, number) for word in row[1:])
        if min(boxes[image_id][2:]) < 1:
            raise InputError("{}:{}: a box of no area".format(file, number))
    return boxes


def read_list(file, folder, boxes=None):
    """Records of a list file: a header `image_id class_id path`, then a row an image."""
    rows = _rows(file, 3)
    if rows[0][1][:2] != ["image_id", "class_id"]:
        raise InputError("{}:1: expected the header 'image_id class_id path'".format(file))
    records, seen = [], set()
    for number, (image_id, identity, path) in rows[1:]:
        image_id = _whole_number(image_id, file, number)
        if image_id in seen:
            raise InputError("{}:{}: image {} is listed twice".format(file, number, image_id))
        seen.add(image_id)
        box = _box_of(image_id, boxes, file, number)
        records.append(
            Record(_inside(folder, path, file, number), _whole_number(identity, file, number), box, image_id)
        )
    if not records:
        raise InputError("{}: lists no images".format(file))
    return records


def _read_cub_layout(name, folder, train_classes):
    folder = Path(folder)
    labels = {}
    file = folder / "image_class_labels.txt"
    for number, (image_id, label) in _rows(file, 2):
        labels[_whole_number(image_id, file, number)] = _whole_number(label, file, number)
    boxes = read_boxes(folder / "bounding_boxes.txt")
    train, test = [], []
    file = folder / "images.txt"
    for number, (word, path) in _rows(file, 2):
        image_id = _whole_number(word, file, number)
        if image_id not in labels:
            raise InputError("{}:{}: image {} has no class in image_class_labels.txt".format(file, number, image_id))
        identity = labels[image_id] - 1
        box = _box_of(image_id, boxes, file, number)
        half, identity = (train, identity) if identity < train_classes else (test, identity - train_classes)
        half.append(Record(_inside(folder / "images", path, file, number), identity, box, image_id))
    return Dataset(name, train, test, RANKS)


def _rows(file, columns):
    """[(line number, words)] of a text file's lines that are not blank."""
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError("{}: {}; is --data-dir the data set's folder?".format(file, error.strerror))
    except UnicodeDecodeError:
        raise InputError("{}: not a text file".format(file))
    rows = [(number, line.split(None, columns - 1)) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise InputError("{}: empty".format(file))
    for number, row in rows:
        if len(row) != columns:
            raise InputError("{}:{}: expected {} columns, found {}".format(file, number, columns, len(row)))
    return rows


def _whole_number(word, file, number):
    if word.isdigit():
        return int(word)
    raise InputError("{}:{}: expected a whole number, found {!r}".format(file, number, word))


def _pixels(word, file, number):
    try:
        return int(float(word))
    except (ValueError, OverflowError):
        raise InputError("{}:{}: expected a number, found {!r}".format(file, number, word))


def _inside(folder, path, file, number):
    path = path.strip()
    if path.startswith("/") or ".." in path.split("/"):
        raise InputError("{}:{}: {!r} leads out of the data folder".format(file, number, path))
    return Path(folder) / path


def _box_of(image_id, boxes, file, number):
    if boxes is None:
        return None
    if image_id not in boxes:
        raise InputError("{}:{}: image {} has no bounding box".format(file, number, image_id))
    return boxes[image_id]


def _check_pictures(dataset):
    """Before any work: a score on the pictures that happen to be there would be a score on another data set."""
    missing = [record.path for record in dataset.train + dataset.test if not record.path.is_file()]
    if missing:
        raise InputError(
            "{} of {} images are missing, the first of them {}".format(
                len(missing), len(dataset.train) + len(dataset.test), missing[0]
            )
        )
