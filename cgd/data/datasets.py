"""Data sets, as records: which picture, of which identity, in which box.

Splits, ranks and sizes are the ones of the paper's protocol; each reader takes the official files in their official
layout. Whatever does not fit is an InputError that says which file, and what to do.
"""

import hashlib
import json
import os
import sys
from collections import Counter, namedtuple
from functools import partial
from pathlib import Path
from typing import Callable, Dict, NamedTuple, Optional, Tuple

from cgd.data import birds
from cgd.data.annotations import (
    inside,
    read_boxes,
    read_cars,
    read_list,
    read_numbered,
    read_partition,
    read_rows,
    whole_number,
)
from cgd.system.errors import InputError

# id : int, as the data set's own files number the class · name : str, "" where the files have none
Class = namedtuple("Class", "id name")

# path : path of the picture, as text · box : (x, y, w, h) in whole pixels, or None
# identity : int from 0, within its half of the data set; as a reader returns it, the Class
# image_id : int, as the data set numbers it
Record = namedtuple("Record", "path identity box image_id")

# train, test : lists of Record; train is None where the training half is not known (`load`)
# ranks : the K at which Recall@K is reported
# gallery : list of Record that `test`, the queries, are searched in; None where they are searched among themselves
# classes : list of Class, by the identities of `test` and `gallery`
Dataset = namedtuple("Dataset", "name train test ranks gallery classes")
Dataset.__new__.__defaults__ = (None, ())

PICTURES = (".jpg", ".jpeg", ".png", ".bmp")  # what images.read_image reads


def cub200(folder):
    """CUB-200-2011 from its official annotation files: classes 1-100 for training, 101-200 for test."""
    return _cub_layout(folder, train_classes=100)


def demo(folder):
    """The demo set, drawn where it is missing, in CUB's layout: the first half of its classes is for training."""
    if not Path(folder).exists():
        print("drawing the demo set: {}".format(folder))
        birds.draw_demo(folder)
    classes = len(read_rows(Path(folder) / "classes.txt", 2))
    return _cub_layout(folder, train_classes=classes // 2)


def cars196(folder):
    """Cars196, classes 1-98 for training, 99-196 for test, in either of its two layouts.

    `cars_annos.mat` and `car_ims/`; or the later one, `cars_train/`, `cars_test/` and a devkit with
    `cars_train_annos.mat` and `cars_test_annos_withlabels.mat` (which was a file of its own, and may stand beside it).
    Both have the same pictures under other names; the original split into training and test does not matter.
    """
    folder = Path(folder)
    if (folder / "cars_annos.mat").exists():
        sources = [(folder / "cars_annos.mat", "relative_im_path", folder)]
    else:
        labelled = [where / "cars_test_annos_withlabels.mat" for where in (folder / "devkit", folder)]
        if not any(file.exists() for file in labelled):
            raise InputError(
                "{}: expected cars_annos.mat, or devkit/cars_train_annos.mat and devkit/{}; see bash download.sh "
                "cars196".format(folder, labelled[0].name)
            )
        sources = [
            (folder / "devkit" / "cars_train_annos.mat", "fname", folder / "cars_train"),
            (next(file for file in labelled if file.exists()), "fname", folder / "cars_test"),
        ]
    rows = []
    for file, field, pictures in sources:
        for number, path, label, box in read_cars(file, field):
            rows.append((inside(pictures, path, file, number), _from_one(label, file, number), box))
    records = [Record(path, Class(label, ""), box, image_id) for image_id, (path, label, box) in enumerate(rows, 1)]
    return _zero_shot(records, train_classes=98)


def sop(folder):
    """Stanford Online Products from its own lists, whole pictures."""
    folder = Path(folder)
    train, test = (partial(_listed, folder / "Ebay_{}.txt".format(half), folder) for half in ("train", "test"))
    return {"train": train, "test": test()}


def inshop(folder):
    """In-shop Clothes Retrieval: queries against a gallery, whole pictures.

    `list_eval_partition.txt` and `img/` in the folder, or in its `Eval` and `Img`, as the authors' drive has them. A
    class has its item id as its name; its number is its place in the file, from 1.
    """
    folder = Path(folder)
    file = folder / "Eval" / "list_eval_partition.txt"
    if not file.exists():
        file = folder / "list_eval_partition.txt"
    pictures = folder / "Img" if (folder / "Img").is_dir() else folder
    halves, items = {"train": [], "query": [], "gallery": []}, {}
    for image_id, (number, path, item, status) in enumerate(read_partition(file), 1):
        item = items.setdefault(item, Class(len(items) + 1, item))
        halves[status].append(Record(inside(pictures, path, file, number), item, None, image_id))
    return {"train": halves["train"], "test": halves["query"], "gallery": halves["gallery"]}


def folders(folder):
    """Anyone's own pictures: a folder for each class.

    FOLDER/train/CLASS/PICTURE and FOLDER/test/CLASS/PICTURE; or FOLDER/CLASS/PICTURE, of which the first half of the
    classes, in the order of their names, is for training and the rest for test. A class has its folder's name; its
    number is its place among the folders beside it, from 1.
    """
    folder = Path(folder)
    if (folder / "test").is_dir():
        halves = {"test": _class_folders(folder / "test")}
        if (folder / "train").is_dir():
            halves["train"] = partial(_class_folders, folder / "train")
        return halves
    classes = _class_names(folder)
    half = len(classes) // 2
    if len(classes) == 1:
        raise InputError("{}: one class only; half of the classes are for training, half for test".format(folder))
    return {"train": partial(_class_folders, folder, classes[:half]), "test": _class_folders(folder, classes[half:])}


class Source(NamedTuple):
    """Where a data set comes from, and what must be there.

    read : folder -> {"train": records, "test": records}, and "gallery" where there is one; for "train", a function that
        gives the records where they are read from files of their own
    folder : where it lies if --data-dir does not say
    ranks : the K at which Recall@K is reported
    counts : {half: (identities, images)} of the official one; None for no check
    """

    read: Callable
    folder: str
    ranks: Tuple[int, ...] = (1, 2, 4, 8)
    counts: Optional[Dict[str, Tuple[int, int]]] = None


SOURCES = {
    "cub200": Source(cub200, "./data/CUB_200_2011", counts={"train": (100, 5864), "test": (100, 5924)}),
    "cars196": Source(cars196, "./data/Cars196", counts={"train": (98, 8054), "test": (98, 8131)}),
    "sop": Source(
        sop,
        "./data/Stanford_Online_Products",
        ranks=(1, 10, 100, 1000),
        counts={"train": (11318, 59551), "test": (11316, 60502)},
    ),
    "inshop": Source(
        inshop,
        "./data/In-shop",
        ranks=(1, 10, 20, 30, 40, 50),
        counts={"train": (3997, 25882), "test": (3985, 14218), "gallery": (3985, 12612)},
    ),
    "demo": Source(demo, "./data/demo"),
    "folders": Source(folders, "./data/folders"),
    "lists": Source(None, "."),
}


def load(name, folder=None, train_txt=None, test_txt=None, bbox_txt=None, gallery_txt=None, need_training=True):
    """The data set of that name: from list files where they are given, else by its own reader.

    train_txt, test_txt, gallery_txt : lists as annotations.read_list has them, with paths relative to `folder`; without
        `train_txt` there is nothing to train on, without `gallery_txt` the test half is searched in itself
    bbox_txt : rows `image_id x y w h`, no header, for every listed image; None for whole pictures
    need_training : whether the training half must be there. If not, its pictures are not looked up, and its records are
        for counting only: those of the files that the test half needs too, or of `train_txt`; else `train` is None

    Raises InputError when files are missing or do not fit, and when the official files are not complete; lists of other
    sizes than the official ones are warned of. Pictures are looked up, not opened. Identities are numbered from 0 in
    each half, in the order of the data set's own.
    """
    if name not in SOURCES:
        raise InputError("no data set {!r}; --dataset chooses one of {}".format(name, ", ".join(SOURCES)))
    source = SOURCES[name]
    folder = Path(folder or source.folder)
    if not folder.is_dir() and name != "demo":
        raise InputError(
            "{}: no such folder; --data-dir names the data set's, bash download.sh gets one".format(folder)
        )
    if test_txt:
        halves = _from_lists(folder, train_txt, test_txt, bbox_txt, gallery_txt, need_training)
    elif train_txt or bbox_txt or gallery_txt:
        raise InputError("--train-txt, --gallery-txt and --bbox-txt go with --test-txt")
    elif source.read:
        halves = source.read(folder)
    else:
        raise InputError("--dataset {}: give its list files, --train-txt and --test-txt".format(name))
    if not halves["test"]:
        raise InputError("{}: no pictures to test on".format(folder))
    train = halves.pop("train", None)
    if callable(train):
        train = train() if need_training else None
    if need_training:
        halves["train"] = train = train or []
    if source.counts:
        _check_counts(name, halves, source.counts, by_hand=bool(test_txt))
    _check_pictures(halves)
    if train is not None:
        (train,), _ = _numbered(train)
    (test, gallery), classes = _numbered(halves["test"], halves.get("gallery", []))
    return Dataset(name, train, test, source.ranks, gallery or None, classes)


def statistics(dataset):
    """The table of classes and images, as the authors' evaluation code prints it; no line for a half not known."""
    rule = "+------------------------------+"
    halves = [(name, *count) for name, count in counts(dataset).items()]
    tested = count_identities(dataset.test + (dataset.gallery or []))
    trained = count_identities(dataset.train or [])
    total = ("Total", trained + tested, sum(images for _, _, images in halves))
    rows = ["| {:<7} |    {:5d} | {:7d} |".format(*half) for half in halves + [total]]
    lines = ["###### Dataset Statistics ######", rule, "| Subset  | #Classes | #Images |", rule]
    return "\n".join(lines + rows[:-1] + [rule] + rows[-1:] + [rule])


def counts(dataset):
    """{half: (identities, images)} of the halves that are known."""
    halves = {"Train": dataset.train, "Test": dataset.test}
    if dataset.gallery:
        halves = {"Train": dataset.train, "Query": dataset.test, "Gallery": dataset.gallery}
    return {name: (count_identities(half), len(half)) for name, half in halves.items() if half is not None}


def digests(dataset):
    """{split: SHA-1} of the images' names, classes and boxes. They do not depend on where the data folder is."""
    splits = {"train": dataset.train, "test": dataset.test, "gallery": dataset.gallery}
    return {name: _digest(records) for name, records in splits.items() if records is not None}


def _digest(records):
    digest = hashlib.sha1()
    for record in records:
        names = record.path.split("/")[-2:]
        digest.update(json.dumps([names, record.identity, record.box, record.image_id]).encode())
    return digest.hexdigest()


def count_identities(records):
    """How many identities the records have."""
    return len({record.identity for record in records})


def whole_pictures(dataset):
    """The same data set without boxes."""

    def without_boxes(records):
        return records and [record._replace(box=None) for record in records]

    return dataset._replace(
        train=without_boxes(dataset.train), test=without_boxes(dataset.test), gallery=without_boxes(dataset.gallery)
    )


def check_trainable(dataset):
    """Raises InputError for a data set that no ranking loss can learn from: nothing, or a class of one image.

    Official training halves are as they are.
    """
    if not dataset.train:
        raise InputError("nothing to train on: --train-txt goes with --test-txt, a folder `train` with `test`")
    official = SOURCES[dataset.name].counts
    if official and counts(dataset)["Train"] == official["train"]:
        return
    images = {}
    for record in dataset.train:
        images.setdefault(record.identity, []).append(record.path)
    alone = [paths[0] for paths in images.values() if len(paths) == 1]
    if alone:
        raise InputError(
            "{}: the only training image of its class, which so has no positive pair (as have {} of {} classes): add "
            "pictures of the class, or leave it out".format(alone[0], len(alone), len(images))
        )


def check_ranks(dataset):
    """Raises InputError for a K beyond the number of pictures that a query is searched in."""
    most = len(dataset.gallery) if dataset.gallery else len(dataset.test) - 1
    if max(dataset.ranks) > most:
        raise InputError(
            "Recall@{0}: each query is searched in {1} images, so K can be {1} at most; --recallk chooses".format(
                max(dataset.ranks), most
            )
        )


def count_lonely(dataset):
    """The number of queries that cannot be a hit: no other image of their class is searched."""
    images = Counter(record.identity for record in dataset.gallery or dataset.test)
    least = 1 if dataset.gallery else 2
    return sum(images[record.identity] < least for record in dataset.test)


def _cub_layout(folder, train_classes):
    folder = Path(folder)
    file, labels_file = folder / "images.txt", folder / "image_class_labels.txt"
    labels, boxes = read_numbered(labels_file), read_boxes(folder / "bounding_boxes.txt")
    records, classes = [], {}
    for image_id, (number, path) in read_numbered(file).items():
        if image_id not in labels:
            raise InputError("{}:{}: image {} has no class in {}".format(file, number, image_id, labels_file.name))
        line, word = labels[image_id]
        label = _from_one(whole_number(word, labels_file, line), labels_file, line)
        identity = classes.setdefault(label, Class(label, Path(path).parent.name))
        path = inside(folder / "images", path, file, number)
        records.append(Record(path, identity, _box_of(image_id, boxes, file, number), image_id))
    return _zero_shot(records, train_classes)


def _zero_shot(records, train_classes):
    """The field's usual split: the first classes for training, the others, never seen before, for test."""
    return {
        "train": [record for record in records if record.identity.id <= train_classes],
        "test": [record for record in records if record.identity.id > train_classes],
    }


def _from_lists(folder, train_txt, test_txt, bbox_txt, gallery_txt, need_training):
    boxes = read_boxes(bbox_txt) if bbox_txt else None
    files = {"train": train_txt if need_training else None, "test": test_txt, "gallery": gallery_txt}
    halves = {half: _listed(file, folder, boxes) for half, file in files.items() if file}
    if train_txt and not need_training:
        try:
            halves["train"] = _listed(train_txt, folder)
        except InputError as error:
            print("warning: --train-txt is left out of the statistics: {}".format(error), file=sys.stderr)
    return halves


def _listed(file, folder, boxes=None):
    """Records of a list file."""
    records = []
    for number, image_id, class_id, path in read_list(file):
        box = _box_of(image_id, boxes, file, number)
        records.append(Record(inside(folder, path, file, number), Class(class_id, ""), box, image_id))
    return records


def _class_names(folder):
    """[Class] of a folder of class folders, in the order of names."""
    names = [path.name for path in _visible(folder) if path.is_dir()]
    return [Class(number, name) for number, name in enumerate(names, 1)]


def _class_folders(folder, classes=None):
    """Records of a folder of class folders: of these classes, or of all."""
    records, ignored = [], []
    for identity in _class_names(folder) if classes is None else classes:
        for path in _visible(folder / identity.name):
            if path.suffix.lower() in PICTURES:
                records.append(Record(str(path), identity, None, len(records) + 1))
            else:
                ignored.append(path)
    if not records:
        raise InputError("{}: expected a folder for each class, with {} in it".format(folder, " ".join(PICTURES)))
    if ignored:
        names = " ".join(PICTURES)
        print("{}: left out {} files, not {}; first {}".format(folder, len(ignored), names, ignored[0]))
    return records


def _visible(folder):
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _numbered(*halves):
    """(the same lists of records with identities from 0 on, their classes in that order).

    Without gaps: the classifier has a logit for each.
    """
    classes = sorted({record.identity for records in halves for record in records})
    numbers = {identity: number for number, identity in enumerate(classes)}
    return [
        [Record(path, numbers[identity], box, image_id) for path, identity, box, image_id in records]
        for records in halves
    ], classes


def _from_one(label, file, number):
    if label < 1:
        raise InputError("{}:{}: classes are numbered from 1, found {}".format(file, number, label))
    return label


def _box_of(image_id, boxes, file, number):
    if boxes is None:
        return None
    if image_id not in boxes:
        raise InputError("{}:{}: image {} has no bounding box".format(file, number, image_id))
    return boxes[image_id]


def _check_counts(name, halves, counts, by_hand):
    """A score on another number of pictures is a score on another data set.

    by_hand : the halves are from lists that the user gave. These may be any, so there is a warning only
    """
    if "gallery" in counts and "gallery" not in halves:
        raise InputError("--dataset {}: its queries need their gallery; give --gallery-txt too".format(name))
    differ = []
    for half, records in halves.items():
        expected = counts.get(half)
        found = count_identities(records), len(records)
        if expected and found != expected and (records or not by_hand):
            text = "the {} half has {} classes and {} images, the official one {} and {}"
            differ.append(text.format(half, *found, *expected))
    if differ and by_hand:
        print("warning: --dataset {}: {}".format(name, "; ".join(differ)), file=sys.stderr)
    elif differ:
        raise InputError(
            "--dataset {}: {}; for a data set of your own use --dataset lists or --dataset folders".format(
                name, "; ".join(differ)
            )
        )


def _check_pictures(halves):
    """Before any work. Folders are listed, which for many pictures takes less time than asking for each."""
    listed, missing, count = {}, [], 0
    for record in (record for records in halves.values() for record in records):
        folder, name = os.path.split(record.path)
        if folder not in listed:
            listed[folder] = _names(folder)
        count += 1
        if name not in listed[folder]:
            missing.append(record.path)
    if missing:
        raise InputError("{} of {} images are missing, the first of them {}".format(len(missing), count, missing[0]))


def _names(folder):
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()
