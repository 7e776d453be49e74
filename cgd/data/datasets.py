"""Data sets as lists of records: the path, identity and bounding box of each image.

Splits, ranks and sizes follow the paper's protocol. Each reader takes the official files in their official layout.
Errors are InputErrors that name the file and say what to do.
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

# id : int, class id in the data set's own files · name : str, "" if the files have none
Class = namedtuple("Class", "id name")

# path : str, path of the image · box : (x, y, w, h) in pixels (int), or None
# identity : int from 0, within its split; the readers below return the Class instead
# image_id : int, id in the data set's own files
Record = namedtuple("Record", "path identity box image_id")

# train, test : lists of Record; train is None if the training split is not known (see `load`)
# ranks : the values of K at which Recall@K is reported
# gallery : list of Record in which the queries (`test`) are searched; None if `test` is searched in itself
# classes : list of Class, indexed by the identities of `test` and `gallery`
# tested : what `test` is, for messages: the test split, or validation classes (see `hold_out`)
Dataset = namedtuple("Dataset", "name train test ranks gallery classes tested")
TEST_SPLIT = "test split"
Dataset.__new__.__defaults__ = (None, (), TEST_SPLIT)

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp")  # the formats that images.read_image reads


def cub200(folder):
    """CUB-200-2011 from its official annotation files: classes 1-100 for training, 101-200 for testing."""
    return _cub_layout(folder, train_classes=100)


def demo(folder):
    """The demo set, in CUB's layout, drawn if it is missing; the first half of its classes is for training.

    Raises InputError for images of another version of the program.
    """
    if not Path(folder).exists():
        print(f"drawing the demo set: {folder}")
        birds.draw_demo(folder)
    birds.check_version(folder)
    classes = len(read_rows(Path(folder) / "classes.txt", 2))
    return _cub_layout(folder, train_classes=classes // 2)


def cars196(folder):
    """Cars196, classes 1-98 for training, 99-196 for testing, in either of its two layouts.

    The first has `cars_annos.mat` and `car_ims/`. The second has `cars_train/`, `cars_test/` and a devkit with
    `cars_train_annos.mat` and `cars_test_annos_withlabels.mat`; the latter was distributed separately and may also be
    next to `devkit/`. Both contain the same images under different names. The original train/test split is not used.
    """
    folder = Path(folder)
    if (folder / "cars_annos.mat").exists():
        sources = [(folder / "cars_annos.mat", "relative_im_path", folder)]
    else:
        labelled = [where / "cars_test_annos_withlabels.mat" for where in (folder / "devkit", folder)]
        if not any(file.exists() for file in labelled):
            raise InputError(
                f"{folder}: expected cars_annos.mat, or devkit/cars_train_annos.mat and devkit/{labelled[0].name}; see "
                "bash download.sh cars196"
            )
        sources = [
            (folder / "devkit" / "cars_train_annos.mat", "fname", folder / "cars_train"),
            (next(file for file in labelled if file.exists()), "fname", folder / "cars_test"),
        ]
    rows = []
    for file, field, image_folder in sources:
        for number, path, label, box in read_cars(file, field):
            rows.append((inside(image_folder, path, file, number), _check_label(label, file, number), box))
    records = [Record(path, Class(label, ""), box, image_id) for image_id, (path, label, box) in enumerate(rows, 1)]
    return _zero_shot(records, train_classes=98)


def sop(folder):
    """Stanford Online Products from its own lists; there are no bounding boxes."""
    folder = Path(folder)
    train, test = (partial(_listed, folder / f"Ebay_{split}.txt", folder) for split in ("train", "test"))
    return {"train": train, "test": test()}


def inshop(folder):
    """In-shop Clothes Retrieval: queries and a gallery; bounding boxes are not used.

    Expects `list_eval_partition.txt` and `img/` in the folder, or in its subfolders `Eval` and `Img` as in the official
    distribution. Class names are item ids; class ids count the items in file order, from 1.
    """
    folder = Path(folder)
    file = folder / "Eval" / "list_eval_partition.txt"
    if not file.exists():
        file = folder / "list_eval_partition.txt"
    image_folder = folder / "Img" if (folder / "Img").is_dir() else folder
    splits, items = {"train": [], "query": [], "gallery": []}, {}
    for image_id, (number, path, item, status) in enumerate(read_partition(file), 1):
        item = items.setdefault(item, Class(len(items) + 1, item))
        splits[status].append(Record(inside(image_folder, path, file, number), item, None, image_id))
    return {"train": splits["train"], "test": splits["query"], "gallery": splits["gallery"]}


def folders(folder):
    """A data set of your own, with one folder per class.

    FOLDER/train/CLASS/IMAGE and FOLDER/test/CLASS/IMAGE; or FOLDER/CLASS/IMAGE, where the first half of the classes,
    sorted by name, is for training and the rest for testing. Class names are folder names; class ids count the sorted
    class folders, from 1.
    """
    folder = Path(folder)
    if (folder / "test").is_dir():
        splits = {"test": _class_folders(folder / "test")}
        if (folder / "train").is_dir():
            splits["train"] = partial(_class_folders, folder / "train")
        return splits
    if (folder / "train").is_dir():
        raise InputError(f"{folder}: has a folder train, but no folder test")
    classes = _class_names(folder)
    half = len(classes) // 2
    if len(classes) == 1:
        raise InputError(f"{folder}: only one class; half of the classes are for training, half for testing")
    return {"train": partial(_class_folders, folder, classes[:half]), "test": _class_folders(folder, classes[half:])}


class Source(NamedTuple):
    """How a data set is read, and its official size.

    read : function, folder -> {"train": records, "test": records}, with "gallery" if there is one. "train" may be a
        function without arguments that returns the records, if they are read from separate files
    folder : the default of --data-dir
    ranks : the values of K at which Recall@K is reported
    counts : {split: (identities, images)}, official sizes; None: not checked
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
    """Loads a data set by name, from list files if given, otherwise with its own reader.

    train_txt, test_txt, gallery_txt : list files in the format of annotations.read_list, with paths relative to
        `folder`. Without `train_txt` the training split is empty; without `gallery_txt` the test split is searched in
        itself
    bbox_txt : rows `image_id x y w h`, no header, for every listed image; None: images are not cropped
    need_training : whether the training split is required. If False, its images are not looked up, and its records
        serve for statistics only: they come from `train_txt` or from files that the test split needs as well, otherwise
        `train` is None

    Raises InputError if files are missing or invalid, or if the official files are incomplete. Lists whose sizes differ
    from the official ones give a warning. Images are looked up, but not opened. Identities are numbered from 0 in each
    split, in the order of the data set's own class ids.
    """
    if name not in SOURCES:
        raise InputError(f"no data set {name!r}; choose --dataset from {', '.join(SOURCES)}")
    source = SOURCES[name]
    folder = Path(folder or source.folder)
    if not folder.is_dir() and name != "demo":
        hint = "give the folder of your images by --data-dir"
        if name not in ("folders", "lists"):
            hint = f"check --data-dir, or get the data set with bash download.sh {name}"
        raise InputError(f"{folder}: no such folder; {hint}")
    if test_txt:
        splits = _from_lists(folder, train_txt, test_txt, bbox_txt, gallery_txt, need_training)
    elif train_txt or bbox_txt or gallery_txt:
        raise InputError("--train-txt, --gallery-txt and --bbox-txt require --test-txt")
    elif source.read:
        splits = source.read(folder)
    else:
        lists = "lists by --train-txt and --test-txt" if need_training else "list by --test-txt"
        raise InputError(f"--dataset {name}: give its {lists}, and the images' folder by --data-dir")
    if not splits["test"]:
        raise InputError(f"{folder}: no test images")
    train = splits.pop("train", None)
    if callable(train):
        train = train() if need_training else None
    if need_training:
        splits["train"] = train = train or []
    if source.counts:
        _check_counts(name, splits, source.counts, from_lists=bool(test_txt))
    _check_pictures(splits)
    if train is not None and name == "folders" and not test_txt:  # ids of two lists may be numbered apart
        _warn_of_common_classes(train, splits["test"])
    if train is not None:
        (train,), _ = _numbered(train)
    (test, gallery), classes = _numbered(splits["test"], splits.get("gallery", []))
    return Dataset(name, train, test, source.ranks, gallery or None, classes)


def statistics(dataset):
    """The table of classes and images that the authors' evaluation code prints; unknown splits are omitted."""
    rule = "+------------------------------+"
    splits = [(name, *count) for name, count in counts(dataset).items()]
    test_classes = count_identities(dataset.test + (dataset.gallery or []))
    train_classes = count_identities(dataset.train or [])
    total = ("Total", train_classes + test_classes, sum(images for _, _, images in splits))
    rows = ["| {:<7} |    {:5d} | {:7d} |".format(*split) for split in splits + [total]]
    lines = ["###### Dataset Statistics ######", rule, "| Subset  | #Classes | #Images |", rule]
    return "\n".join(lines + rows[:-1] + [rule] + rows[-1:] + [rule])


def counts(dataset):
    """{split: (identities, images)} of the known splits."""
    splits = {"Train": dataset.train, "Test": dataset.test}
    if dataset.gallery:
        splits = {"Train": dataset.train, "Query": dataset.test, "Gallery": dataset.gallery}
    return {name: (count_identities(split), len(split)) for name, split in splits.items() if split is not None}


def digests(dataset):
    """{split: SHA-1} of the images' names, classes and boxes. They do not depend on where the data folder is."""
    splits = {"train": dataset.train, "test": dataset.test, "gallery": dataset.gallery}
    return {name: digest(records) for name, records in splits.items() if records is not None}


def digest(records):
    """SHA-1 of the images' names, classes and boxes."""
    digest = hashlib.sha1()
    for record in records:
        name = record.path.split("/")[-1]
        digest.update(json.dumps([name, record.identity, record.box, record.image_id]).encode())
    return digest.hexdigest()


def count_identities(records):
    """The number of distinct identities among the records."""
    return len({record.identity for record in records})


def without_boxes(dataset):
    """The same data set without bounding boxes, for uncropped images."""

    def strip(records):
        return records and [record._replace(box=None) for record in records]

    return dataset._replace(train=strip(dataset.train), test=strip(dataset.test), gallery=strip(dataset.gallery))


def hold_out(dataset, share):
    """The data set with the last classes of its training split in the place of the test split.

    share : of the training classes, above 0 and below 1; at least two are held out: among one class, recall is always 1

    Hyper-parameters and the best iteration are then chosen without a look at the test split: Musgrave et al., "A Metric
    Learning Reality Check" (ECCV 2020). Raises InputError for fewer than four training classes, and for ranks
    that are too large for the classes that are held out.
    """
    classes = count_identities(dataset.train)
    if classes < 4:
        raise InputError(f"--validation-classes: expected 4 training classes or more, found {classes}")
    kept = classes - min(max(2, round(share * classes)), classes - 2)  # the losses need two, too
    train = [record for record in dataset.train if record.identity < kept]
    held = [record._replace(identity=record.identity - kept) for record in dataset.train if record.identity >= kept]
    dataset = dataset._replace(train=train, test=held, gallery=None, classes=(), tested="validation classes")
    check_ranks(dataset)
    return dataset


def check_trainable(dataset):
    """Raises InputError if the training split is empty or has a class with a single image, which has no positive pair.

    Training splits of the official size are not checked.
    """
    if not dataset.train:
        raise InputError("no training images: give --train-txt with --test-txt, or a folder `train` next to `test`")
    official = SOURCES[dataset.name].counts
    if official and counts(dataset)["Train"] == official["train"]:
        return
    images = {}
    for record in dataset.train:
        images.setdefault(record.identity, []).append(record.path)
    alone = [paths[0] for paths in images.values() if len(paths) == 1]
    if alone:
        raise InputError(
            f"{alone[0]}: the only training image of its class, which therefore has no positive pair "
            f"({len(alone)} of {len(images)} classes): add images of the class, or remove it"
        )


def check_ranks(dataset):
    """Raises InputError if a K exceeds the number of images that a query is searched in."""
    most = len(dataset.gallery) if dataset.gallery else len(dataset.test) - 1
    if max(dataset.ranks) > most:
        raise InputError(
            f"Recall@{max(dataset.ranks)} of the {dataset.tested}: each query is searched in {most} images, so K must "
            f"be at most {most}; set --recallk"
        )


def count_lonely(dataset):
    """The number of queries without a positive: no other image of their class is searched."""
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
            raise InputError(f"{file}:{number}: image {image_id} has no class in {labels_file.name}")
        line, word = labels[image_id]
        label = _check_label(whole_number(word, labels_file, line), labels_file, line)
        identity = classes.setdefault(label, Class(label, Path(path).parent.name))
        path = inside(folder / "images", path, file, number)
        records.append(Record(path, identity, _box_of(image_id, boxes, file, number), image_id))
    return _zero_shot(records, train_classes)


def _zero_shot(records, train_classes):
    """The usual zero-shot split: the first classes for training, the other, unseen classes for testing."""
    return {
        "train": [record for record in records if record.identity.id <= train_classes],
        "test": [record for record in records if record.identity.id > train_classes],
    }


def _from_lists(folder, train_txt, test_txt, bbox_txt, gallery_txt, need_training):
    given = {"--test-txt": test_txt, "--bbox-txt": bbox_txt, "--gallery-txt": gallery_txt}
    given.update({"--train-txt": train_txt} if need_training else {})
    for flag, file in given.items():
        if file and (not Path(file).exists() or Path(file).is_dir()):
            hint = "expected a list file"
            if Path(folder, file).is_file():
                hint = f"lists are not looked for in --data-dir: give {Path(folder, file)}"
            raise InputError(f"{flag} {file}: {'is a folder' if Path(file).is_dir() else 'no such file'}; {hint}")
    boxes = read_boxes(bbox_txt) if bbox_txt else None
    files = {"train": train_txt if need_training else None, "test": test_txt, "gallery": gallery_txt}
    splits = {split: _listed(file, folder, boxes) for split, file in files.items() if file}
    if boxes is not None:
        _check_ids(splits, files)
    if train_txt and not need_training:
        try:
            splits["train"] = _listed(train_txt, folder)
        except InputError as error:
            print(f"warning: --train-txt is not included in the statistics: {error}", file=sys.stderr)
    _warn_of_common_images(splits, dict(files, train=train_txt))
    return splits


def _warn_of_common_images(splits, files):
    """Warns of images that are in two lists."""
    seen = "the recall is not one of unseen images"
    wrong = {("train", "test"): seen, ("train", "gallery"): seen, ("test", "gallery"): "each finds itself"}
    for (first, second), what in wrong.items():
        paths = ({os.path.normpath(record.path) for record in splits.get(split, ())} for split in (first, second))
        common = len(set.intersection(*paths))
        if common:
            both = f"{files[first]} and {files[second]}"
            print(f"warning: {both} have {common} images in common: {what}", file=sys.stderr)


def _warn_of_common_classes(train, test):
    """Warns if classes of the test split, by their names, are trained on."""
    names = ({record.identity.name for record in records} for records in (train, test))
    common = sorted(set.intersection(*names))
    if common:
        text = f"{len(common)} classes are in the training and in the test split, the first of them {common[0]}"
        print(f"warning: {text}: the recall is not one of unseen classes", file=sys.stderr)


def _check_ids(splits, files):
    """Raises InputError if an id is of two images: boxes go by it."""
    known = {}
    for split, records in splits.items():
        for record in records:
            path, file = known.setdefault(record.image_id, (record.path, files[split]))
            if os.path.normpath(path) != os.path.normpath(record.path):
                is_ = f"image {record.image_id} is {record.path}, but {path} in {file}"
                raise InputError(f"{files[split]}: {is_}; with --bbox-txt, ids must be of one image in all lists")


def _listed(file, folder, boxes=None):
    """The records of a list file."""
    records = []
    for number, image_id, class_id, path in read_list(file):
        box = _box_of(image_id, boxes, file, number)
        records.append(Record(inside(folder, path, file, number), Class(class_id, ""), box, image_id))
    return records


def _class_names(folder):
    """[Class] of a folder of class folders, sorted by name; without folders of runs and indices, which are told.

    A folder without images is a class: they may have been removed, and other classes would be the first half.
    """
    found = [path for path in _visible(folder) if path.is_dir()]
    results = [path.name for path in found if _holds_results(path)]
    if results:
        text = f"ignored {len(results)} folders of runs or indices, the first of them {results[0]}"
        print(f"{folder}: {text}", file=sys.stderr)
    names = (path.name for path in found if path.name not in results)
    return [Class(number, name) for number, name in enumerate(names, 1)]


def _holds_results(folder):
    """Whether a folder is a run, holds runs at any depth and no images, or is an index of `cgd.describe`."""
    try:
        if (folder / "arguments.json").is_file() or (folder / "index.json").is_file():
            return True
        has_images = any(file.suffix.lower() in EXTENSIONS for file in folder.iterdir())
        return not has_images and any(folder.rglob("arguments.json"))
    except OSError:  # it may not be listed, and is told where its images are needed
        return False


def _class_folders(folder, classes=None):
    """Records of a folder of class folders, of the given classes or of all."""
    records, ignored = [], []
    for identity in _class_names(folder) if classes is None else classes:
        for path in _visible(folder / identity.name):
            if path.suffix.lower() in EXTENSIONS:
                records.append(Record(str(path), identity, None, len(records) + 1))
            else:
                ignored.append(path)
    extensions = " ".join(EXTENSIONS)
    if not records:
        raise InputError(f"{folder}: expected a folder for each class, with {extensions} files")
    if ignored:
        text = f"ignored {len(ignored)} files that are not {extensions}, the first of them {ignored[0]}"
        print(f"{folder}: {text}", file=sys.stderr)
    return records


def _visible(folder):
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _numbered(*splits):
    """(the same lists of records with identities numbered from 0 without gaps, their classes in that order).

    Identities are indices of the classifier's logits.
    """
    classes = sorted({record.identity for records in splits for record in records})
    numbers = {identity: number for number, identity in enumerate(classes)}
    return [
        [Record(path, numbers[identity], box, image_id) for path, identity, box, image_id in records]
        for records in splits
    ], classes


def _check_label(label, file, number):
    if label < 1:
        raise InputError(f"{file}:{number}: classes are numbered from 1, found {label}")
    return label


def _box_of(image_id, boxes, file, number):
    if boxes is None:
        return None
    if image_id not in boxes:
        raise InputError(f"{file}:{number}: image {image_id} has no bounding box")
    return boxes[image_id]


def _check_counts(name, splits, counts, from_lists):
    """Compares the sizes of the splits with the official ones: recalls on another number of images do not compare.

    from_lists : the splits come from list files given by the user, so a difference gives a warning, not an error
    """
    if "gallery" in counts and "gallery" not in splits:
        raise InputError(f"--dataset {name}: has a gallery; give --gallery-txt too")
    differ = []
    for split, records in splits.items():
        expected = counts.get(split)
        found = count_identities(records), len(records)
        if expected and found != expected and (records or not from_lists):
            text = "the {} split has {} classes and {} images, the official one {} and {}"
            differ.append(text.format(split, *found, *expected))
    message = f"--dataset {name}: {'; '.join(differ)}"
    if differ and from_lists:
        print(f"warning: {message}", file=sys.stderr)
    elif differ:
        raise InputError(f"{message}; for a data set of your own use --dataset lists or --dataset folders")


def _check_pictures(splits):
    """Raises InputError if images are missing. Listing the folders is faster than looking up each file."""
    listed, missing, count = {}, [], 0
    for record in (record for records in splits.values() for record in records):
        folder, name = os.path.split(record.path)
        if folder not in listed:
            listed[folder] = _names(folder)
        count += 1
        if name not in listed[folder]:
            missing.append(record.path)
    if missing:
        raise InputError(f"{len(missing)} of {count} images are missing, the first of them {missing[0]}")


def _names(folder):
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()
