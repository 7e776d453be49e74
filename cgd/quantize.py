"""Quantises a checkpoint to int8, for faster inference on a CPU.

    python -m cgd.quantize runs/cub200-MG-1/last -o runs/cub200-MG-1/last-int8
    python test.py --pretrained-model runs/cub200-MG-1/last-int8 --gpu -1

The convolutions then take 8-bit numbers; the Dense layers of the descriptors stay in float32. The range of each feature
map is that of training images, which are prepared as for evaluation. The result is a checkpoint like any other, but
for a CPU, and for evaluation only. The flags of the data set are those of test.py.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from cgd.data import flags, images, loader
from cgd.network import checkpoints, graphs, onednn
from cgd.system import errors, files
from cgd.system.environment import mx
from cgd.system.errors import InputError

BACKEND = "MKLDNN_QUANTIZE"  # MXNet's pass that fuses operators, before and after quantisation


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
    if Path(options.prefix).resolve() == Path(options.output).resolve():
        raise InputError(f"-o {options.output}: is the checkpoint itself; give the new one another name")
    files.must_be_writable(options.output + "-symbol.json")
    return options


def quantize(symbol, values, batches, size):
    """The graph in int8, and its parameters.

    symbol : a float32 graph with the input "data" · values : {name: NDArray}, all its parameters
    batches : mx.io.DataIter of normalised images (N, 3, H, W), whose feature maps give the ranges
    size : (W, H) of the images

    Raises InputError if MXNet cannot quantise the graph.
    """
    symbol, values, _ = onednn.fastest(symbol, values, size)
    symbol = symbol.get_backend_symbol(BACKEND)
    nodes = json.loads(symbol.tojson())["nodes"]
    dense = [node["name"] for node in nodes if "fully_connected" in node["op"]]
    try:
        symbol, arguments, states = mx.contrib.quantization.quantize_model(
            symbol,
            *graphs.arguments_and_states(symbol, values),
            label_names=None,
            excluded_sym_names=dense,
            calib_mode="entropy",
            calib_data=batches,
            quantized_dtype="auto",
        )
    except mx.base.MXNetError as error:
        raise InputError(f"MXNet cannot quantise this network: {' '.join(str(error).split())[:200]}")
    return symbol.get_backend_symbol(BACKEND), dict(arguments, **states)


def training_images(checkpoint, options):
    """(N, 3, H, W) NDArray: images of the training split, evenly spread, prepared as for evaluation."""
    description = checkpoint.description
    name = options.dataset or description["dataset"]
    records = flags.load_dataset(options, name, cropped=description["cropped"]).train
    chosen = [records[at] for at in np.linspace(0, len(records) - 1, min(options.images, len(records))).astype(int)]
    view = images.EvalView(chosen, (description["image_width"], description["image_height"]))
    source = loader.Loader(view, options.batch_size, options.num_workers, loader.Unreadable(options.skip_unreadable))
    batches = source.batches(images.eval_batches(len(chosen), options.batch_size))
    readable = [mx.nd.array(pictures.asnumpy()[good], dtype="uint8") for pictures, _, good in batches if good.any()]
    if not readable:
        raise InputError("none of the training images could be read")
    statistics = description["mean"], description["std"]
    return mx.nd.concat(*[images.normalise(pictures, *statistics) for pictures in readable], dim=0)


def similarities(one, other, batches):
    """The cosine similarities of the descriptors of two checkpoints, (N,)."""
    first, second = one.graph(mx.cpu()), other.graph(mx.cpu())
    found = [(first(x).asnumpy() * second(x).asnumpy()).sum(axis=1) for x in batches]
    return np.concatenate(found)


def main():
    options = arguments()
    checkpoint = checkpoints.Checkpoint(options.prefix)
    if checkpoint.description["dtype"] != "float32":
        raise InputError(f"{options.prefix}: is quantised already")
    x = training_images(checkpoint, options)
    count = min(options.batch_size, len(x))
    batches = mx.io.NDArrayIter(x, batch_size=count, last_batch_handle="discard")
    values = dict(checkpoint.arg_params, **checkpoint.aux_params)
    symbol, values = quantize(checkpoint.symbol, values, batches, (x.shape[3], x.shape[2]))
    description = dict(checkpoint.description, dtype="int8", quantized_from=options.prefix, recall=None)
    checkpoints.write(options.output, symbol, values, description)
    batches = [x[first : first + count] for first in range(0, len(x) - count + 1, count)]
    alike = similarities(checkpoint, checkpoints.Checkpoint(options.output), batches)
    print(
        f"{len(alike)} training images; cosine similarity with the float32 descriptors: mean {alike.mean():.4f}, "
        f"least {alike.min():.4f}"
    )
    print(f"written: {options.output}")


if __name__ == "__main__":
    errors.run(main)
