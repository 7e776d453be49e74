"""The command line of train.py. Without MXNet, so that cgd.tables can check flags quickly."""

import argparse

from cgd.data import flags
from cgd.system import errors
from cgd.training import recipes

KVSTORE = "dist_sync or dist_async: train on several machines; DMLC_* set each process's role (docs/distributed.md)"
TF32 = "allow TF32 on Ampere and Ada: faster, with 10 bits of mantissa instead of 23 (default: full float32)"
SAVE_EVERY = "iterations between saves of the state; 0: at evaluations and the end only (default: every 10 minutes)"
EVAL_BATCH_SIZE = "images per step of an evaluation (default: 32)"
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
    add("--eval-batch-size", type=flags.whole(1), default=32, metavar="N", help=EVAL_BATCH_SIZE)
    add("--kvstore", metavar="KIND", help=KVSTORE)
    add = parser.add_argument_group("run").add_argument
    add("--seed", type=int, default=0, help="seed of initialisation, batches and augmentation (default: 0)")
    add("--output-dir", metavar="FOLDER", help="folder of the run (default: the next free runs/DATASET-CONFIG-N)")
    add("--resume", metavar="FOLDER", help=RESUME)
    add("--save-every", type=flags.whole(0), metavar="N", help=SAVE_EVERY)
    recipes.add_flags(parser)
    parser.set_defaults(dataset="cub200")
    return parser.parse_args(words)
