"""The flags that train.py and test.py share."""

import argparse
import sys

from cgd.data import datasets
from cgd.system import machine
from cgd.system.errors import InputError

MAX_WORKERS = 8  # by default: more take memory, and no network here is that fast


def whole(least):
    """The type of a flag that takes a whole number from `least` on."""

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
    """ "1,2,4,8" -> (1, 2, 4, 8)."""
    try:
        return tuple(whole(1)(word) for word in text.split(","))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"expected whole numbers from 1, as in 1,2,4,8, found {text!r}")


def add_data_flags(parser, default, crop_default="crops where there are boxes"):
    """Adds the flags that say which pictures.

    default, crop_default : what is meant without --dataset, and without --cropped and --uncropped, in words
    """
    add = parser.add_argument
    add("--dataset", choices=list(datasets.SOURCES), help=f"default: {default}")
    add("--data-dir", metavar="DIR", help="folder of the data set (default: where download.sh puts it, in ./data)")
    add("--train-txt", metavar="FILE", help="list of training images, instead of the data set's own annotation files")
    add("--test-txt", metavar="FILE", help="list of test images; of queries where there is a gallery")
    add("--gallery-txt", metavar="FILE", help="list of the images that the queries are searched in")
    add("--bbox-txt", metavar="FILE", help="bounding boxes of the listed images")
    crop = parser.add_mutually_exclusive_group()
    help_ = f"crop to the bounding boxes (default: {crop_default})"
    crop.add_argument("--cropped", action="store_true", default=None, help=help_)
    crop.add_argument("--uncropped", dest="cropped", action="store_false", help="whole pictures")
    add("--recallk", type=ranks, metavar="K,K,...", help="the K of Recall@K (default: the data set's)")
    help_ = "go on without up to N pictures that cannot be read (default: 0)"
    add("--skip-unreadable", type=whole(0), default=0, metavar="N", help=help_)
    help_ = f"processes that decode; 0 for none (default: one a core, {MAX_WORKERS} at most)"
    add("--num-workers", type=whole(0), default=min(machine.usable_cores(), MAX_WORKERS), metavar="N", help=help_)


def load_dataset(options, name, cropped=True, need_training=True):
    """The data set that the flags ask for, cropped or not, with the ranks to report; prints its table.

    cropped : whether to crop where there are boxes, if no flag says it
    need_training : as in datasets.load

    Raises InputError for what does not fit, before any work.
    """
    files = (options.data_dir, options.train_txt, options.test_txt, options.bbox_txt, options.gallery_txt)
    dataset = datasets.load(name, *files, need_training=need_training)
    if options.cropped and dataset.test[0].box is None:
        raise InputError(f"--cropped: {name} has no bounding boxes; --bbox-txt gives those of listed images")
    if not (cropped if options.cropped is None else options.cropped):
        dataset = datasets.whole_pictures(dataset)
    dataset = dataset._replace(ranks=options.recallk or dataset.ranks)
    datasets.check_ranks(dataset)
    print(datasets.statistics(dataset))
    lonely = datasets.count_lonely(dataset)
    if lonely:
        print(
            f"warning: {lonely} of {len(dataset.test)} queries have no other image of their class to find, and count as misses",
            file=sys.stderr,
        )
    return dataset
