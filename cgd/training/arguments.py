"""The command line of train.py. Does not import MXNet, so that wrong flags are reported at once."""

import argparse

from cgd.data import flags
from cgd.system import errors
from cgd.training import recipes

KVSTORES = ("dist_sync", "dist_async")
KVSTORE = "dist_sync or dist_async: train on several machines; DMLC_* set each process's role (docs/distributed.md)"
TF32 = "allow TF32 on Ampere and Ada: faster, with 10 bits of mantissa instead of 23 (default: full float32)"
SAVE_EVERY = "iterations between saves of the state; 0: at evaluations and the end only (default: every 10 minutes)"
MICRO_BATCH = "images that a device trains on at a time: less memory, more time (default: its share of the batch)"
EVAL_BATCH_SIZE = "images per step of an evaluation (default: 32)"
VALIDATION = (
    "share of the training classes that is held out: evaluations and `best` use these instead of the test split, which "
    "is evaluated once, at the end (default: 0)"
)
RESUME = "resume a stopped run; flags for devices, workers and paths, and more --iterations, may be given again"


def gpus(text):
    """ "0,1" -> [0, 1]."""
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers, as in 0,1,2,3, found {text!r}")
    if len(numbers) > 1 and min(numbers) < 0:
        raise argparse.ArgumentTypeError(f"expected numbers of GPUs, or -1 alone for the CPU, found {text!r}")
    if len(set(numbers)) != len(numbers):
        raise argparse.ArgumentTypeError(f"expected each number once, found {text!r}")
    return numbers


def share(text):
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to below 1, found {text!r}")
    return value


def parse(words, description=None):
    """The options of train.py. Raises InputError for invalid ones; `description` is the text of --help."""
    parser = errors.Parser(
        prog="train.py",
        usage="%(prog)s [flags]",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags.add_data_flags(parser, "cub200")
    group = parser.add_argument_group("initial weights")
    start = group.add_mutually_exclusive_group()
    help_ = (
        "ImageNet weights of the backbone, Gluon's, ONNX and others: docs/weights.md (default: from Gluon's model zoo)"
    )
    start.add_argument("--backbone-params", metavar="FILE", help=help_)
    start.add_argument("--from-scratch", action="store_true", help="random weights")
    help_ = "checkpoint to fine-tune; its network, image size, mean and std become the defaults"
    start.add_argument("--pretrained-model", metavar="PREFIX", help=help_)
    add = parser.add_argument_group("devices").add_argument
    help_ = "GPU number; several, as in 0,1, share each batch; -1 for the CPU (default: 0)"
    add("--gpu", "--gpus", type=gpus, default=[0], metavar="N,...", help=help_)
    add("--tf32", action="store_true", help=TF32)
    add("--micro-batch", type=flags.whole(2), metavar="N", help=MICRO_BATCH)
    add("--eval-batch-size", type=flags.whole(1), default=32, metavar="N", help=EVAL_BATCH_SIZE)
    add("--kvstore", choices=KVSTORES, metavar="KIND", help=KVSTORE)
    add = parser.add_argument_group("run").add_argument
    add("--seed", type=int, default=0, help="seed of initialisation, batches and augmentation (default: 0)")
    add("--output-dir", metavar="FOLDER", help="folder of the run (default: the next free runs/DATASET-CONFIG-N)")
    add("--resume", metavar="FOLDER", help=RESUME)
    add("--validation-classes", type=share, default=0.0, metavar="X", help=VALIDATION)
    add("--save-every", type=flags.whole(0), metavar="N", help=SAVE_EVERY)
    recipes.add_flags(parser)
    parser.set_defaults(dataset="cub200")
    return parser.parse_args(words)
