"""Quantises a checkpoint to int8, for faster inference on a CPU.

    python -m cgd.quantize runs/cub200-MG-1/last -o runs/cub200-MG-1/last-int8
    python test.py --pretrained-model runs/cub200-MG-1/last-int8 --gpu -1

The convolutions then take 8-bit numbers; the Dense layers of the descriptors stay in float32. The range of each feature
map is that of training images, which are prepared as for evaluation. The result is a checkpoint like any other, but
for a CPU, and for evaluation only. It is written if its descriptors are similar to those in float32, and if PREFIX is
new. The flags of the data set are those of test.py.

Needs the package scipy: pip install scipy 'numpy<2'
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from cgd.data import flags
from cgd.network import descriptions
from cgd.system import errors, files
from cgd.system.errors import InputError

# Mean cosine similarity of the descriptors in int8 and in float32: less is not written. After training, any two
# descriptors can have a cosine near 1. So the same without the mean of the float32 descriptors is printed, too, and
# less gives a warning: a network that describes all images alike would have about 0 there.
LEAST_SIMILARITY = 0.5


def arguments():
    parser = errors.Parser(
        prog="python -m cgd.quantize", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("prefix", metavar="PREFIX", help="the checkpoint: its path up to -symbol.json")
    add("-o", "--output", required=True, metavar="PREFIX", help="the checkpoint to write")
    help_ = "training images that give the ranges (default: 256)"
    add("--images", type=flags.whole(1), default=256, metavar="N", help=help_)
    add("--batch-size", type=flags.whole(1), default=32, metavar="N", help="images per step (default: 32)")
    flags.add_data_flags(parser, "the checkpoint's own", "as the checkpoint was trained")
    options = parser.parse_args()
    check_output(options.output)
    return options


def check_output(prefix):
    """Raises InputError if no checkpoint of this name can be written, or if there is one."""
    if prefix.endswith("/") or not Path(prefix).name or Path(prefix).is_dir():
        raise InputError(f"-o {prefix}: expected a path such as runs/int8, to which -symbol.json is added")
    if descriptions.is_onnx(prefix):
        raise InputError(f"-o {prefix}: a checkpoint is written, no ONNX file; expected a path such as runs/int8")
    for ending in descriptions.FILES:
        if Path(prefix + ending).exists():
            raise InputError(f"-o {prefix}: {prefix}{ending} exists; choose another name")
        files.must_be_writable(prefix + ending)


def training_images(description, records, options):
    """(N, 3, H, W) NDArray: images of the records, evenly spread, prepared as for evaluation."""
    from cgd.data import images, loader
    from cgd.system.environment import mx

    chosen = [records[at] for at in np.linspace(0, len(records) - 1, min(options.images, len(records))).astype(int)]
    view = images.EvalView(chosen, (description["image_width"], description["image_height"]))
    source = loader.Loader(view, options.batch_size, options.num_workers, loader.Unreadable(options.skip_unreadable))
    batches = source.batches(images.eval_batches(len(chosen), options.batch_size))
    readable = [mx.nd.array(pictures.asnumpy()[good], dtype="uint8") for pictures, _, good in batches if good.any()]
    if not readable:
        raise InputError("none of the training images could be read")
    statistics = description["mean"], description["std"]
    return mx.nd.concat(*[images.normalise(pictures, *statistics) for pictures in readable], dim=0)


def main():
    options = arguments()
    descriptions.must_be_a_checkpoint(options.prefix)
    description = descriptions.read(options.prefix)
    if description["dtype"] != "float32":
        raise InputError(f"{options.prefix}: is quantised already")
    name = options.dataset or description["dataset"]
    records = flags.load_dataset(options, name, cropped=description["cropped"]).train
    if not records:
        raise InputError("there are no training images, which give the ranges; list them by --train-txt")

    # Not before: these import MXNet, which takes far longer than all the above.
    from cgd.network import checkpoints, int8
    from cgd.system import environment

    with environment.memory_for(f"try --batch-size {max(1, options.batch_size // 2)}, or fewer --images"):
        x = training_images(description, records, options)
        checkpoint = checkpoints.Checkpoint(options.prefix)
        symbol, values, alike = int8.quantize_and_compare(checkpoint, x, options.batch_size)
    whole, rest = (f"mean {each.mean():.4f}, least {each.min():.4f}" for each in alike)
    found = (
        f"{len(x)} training images; cosine similarity with the float32 descriptors: {whole}; without what all of them "
        f"share: {rest}"
    )
    if not (np.isfinite(alike).all() and alike[0].mean() >= LEAST_SIMILARITY):
        raise InputError(f"{options.output}: not written; {found}; expected a mean of at least {LEAST_SIMILARITY}")
    description = dict(checkpoint.description, dtype="int8", quantized_from=options.prefix, recall=None)
    checkpoints.write(options.output, symbol, values, description)
    print(found)
    if alike[1].mean() < LEAST_SIMILARITY:
        print("warning: what distinguishes the images has changed: compare the recall of both", file=sys.stderr)
    print(f"written: {options.output}")


if __name__ == "__main__":
    errors.run(main)
