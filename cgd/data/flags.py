"""Flags that several commands share, of data, devices and loader processes; and argparse types."""

import argparse
import sys

from cgd.data import datasets
from cgd.system import machine
from cgd.system.errors import InputError

MAX_WORKERS = 8  # default limit: more would use memory without making any network here faster


def whole(least):
    """An argparse type: an integer of at least `least`."""

    def parse(text):
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"expected a whole number from {least}, found {text!r}")
        return value

    return parse


def ranks(text):
    """An argparse type: "1,2,4,8" -> (1, 2, 4, 8)."""
    try:
        return tuple(whole(1)(word) for word in text.split(","))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"expected whole numbers from 1, as in 1,2,4,8, found {text!r}")


def box(text):
    """An argparse type: "10,20,80,60" -> (10, 20, 80, 60)."""
    try:
        x, y, w, h = map(int, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected X,Y,W,H in pixels, as in 10,20,80,60, found {text!r}")
    if min(x, y) < 0 or min(w, h) < 1:
        raise argparse.ArgumentTypeError(f"expected X and Y from 0, W and H from 1, found {text!r}")
    return x, y, w, h


def add_data_flags(parser, default, crop_default="crop if there are boxes"):
    """Adds the flags that select the images.

    default, crop_default : help texts for the defaults of --dataset and of --cropped / --uncropped
    """
    group = parser.add_argument_group("data")
    add = group.add_argument
    add("--dataset", choices=list(datasets.SOURCES), help=f"default: {default}")
    add("--data-dir", metavar="DIR", help="folder of the data set (default: its folder in ./data, see download.sh)")
    add("--train-txt", metavar="FILE", help="list of training images; replaces the data set's own annotation files")
    add("--test-txt", metavar="FILE", help="list of test images (with a gallery: the queries)")
    add("--gallery-txt", metavar="FILE", help="list of gallery images")
    add("--bbox-txt", metavar="FILE", help="bounding boxes of the listed images")
    crop = group.add_mutually_exclusive_group()
    help_ = f"crop to the bounding boxes (default: {crop_default})"
    crop.add_argument("--cropped", action="store_true", default=None, help=help_)
    crop.add_argument("--uncropped", dest="cropped", action="store_false", help="use uncropped images")
    add("--recallk", type=ranks, metavar="K,K,...", help="the K of Recall@K (default: the data set's)")
    help_ = "skip up to N images that cannot be read (default: 0)"
    add("--skip-unreadable", type=whole(0), default=0, metavar="N", help=help_)
    add_workers_flag(add)


def add_workers_flag(add):
    """Adds --num-workers. add : the add_argument of a parser or group"""
    help_ = f"processes that decode images; 0: the main process decodes (default: one per core, at most {MAX_WORKERS})"
    add("--num-workers", type=whole(0), default=min(machine.usable_cores(), MAX_WORKERS), metavar="N", help=help_)


def add_device_flags(add):
    """Adds the flags of what runs a network for evaluation, but its precision. add : as in `add_workers_flag`"""
    help_ = "what runs the network, mxnet or onnx (default: mxnet; onnx for FILE.onnx)"
    add("--runtime", metavar="NAME", help=help_)  # descriptions.choose_runtime checks it
    add("--gpu", type=int, default=0, metavar="N", help="GPU number; -1 for the CPU (default: 0)")
    add("--batch-size", type=whole(1), default=32, metavar="N", help="images per step (default: 32)")


def load_dataset(options, name, cropped=True, need_training=True):
    """Loads the data set that the flags select, cropped or not, with the ranks to report; prints its statistics.

    cropped : whether to crop to the boxes if neither --cropped nor --uncropped is given
    need_training : as in datasets.load

    Raises InputError as datasets.load does, for --cropped without boxes, and for ranks that are too large.
    """
    dataset = selected(datasets.load(name, *files_of(options), need_training=need_training), options, cropped)
    print(datasets.statistics(dataset))
    warn_of_lonely(dataset)
    return dataset


def warn_of_lonely(dataset):
    """Warns of queries that cannot be answered, or that cannot be answered wrongly."""
    if datasets.count_identities(dataset.test + (dataset.gallery or [])) == 1:
        print(f"warning: the {dataset.tested} has one class only: every recall is 1", file=sys.stderr)
    lonely = datasets.count_lonely(dataset)
    if lonely:
        print(
            f"warning: {lonely} of {len(dataset.test)} queries have no other image of their class to retrieve and "
            "count as misses",
            file=sys.stderr,
        )


def files_of(options):
    """The folder and the lists that the flags name, as `datasets.load` takes them; None for those not given."""
    return options.data_dir, options.train_txt, options.test_txt, options.bbox_txt, options.gallery_txt


def selected(dataset, options, cropped=True):
    """A data set with the boxes and ranks that the flags select. Raises InputError as `load_dataset` does."""
    if options.cropped and dataset.test[0].box is None:
        raise InputError(
            f"--cropped: {dataset.name} has no bounding boxes; give those of the listed images by --bbox-txt"
        )
    if not (cropped if options.cropped is None else options.cropped):
        dataset = datasets.without_boxes(dataset)
    dataset = dataset._replace(ranks=options.recallk or dataset.ranks)
    datasets.check_ranks(dataset)
    return dataset
