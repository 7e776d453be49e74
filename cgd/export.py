"""Exports a checkpoint to ONNX, for runtimes other than MXNet; or its weights alone to safetensors.

    python -m cgd.export checkpoints/CGD.CUB200.C_concat_MG.ResNet50v.dim1536 released.onnx
    python -m cgd.export runs/demo-MG-1/last demo.onnx --fold --with-preprocessing
    python -m cgd.export runs/demo-MG-1/last demo.safetensors

The ending of the file's name decides. The ONNX model has one input, "image": (N, 3, H, W) float32,
(x / 255 - mean) / std for each channel; and one output, "descriptor": (N, dim) float32, rows of length 1. N is free.
Its metadata say how images must be prepared. If onnxruntime is installed, the descriptors of a batch of noise are
compared with MXNet's.

It needs the package onnx; onnxruntime for the comparison: pip install onnx onnxruntime 'numpy<2'

Safetensors have the checkpoint's names, without "arg:" and "aux:". Their metadata describe the network, its images and
the layout of the weights. This needs no package.
"""

import argparse
import json

from cgd.network import descriptions
from cgd.system import errors, files
from cgd.system.errors import InputError
from cgd.system.packages import optional_package

TOLERANCE = 1e-4  # of each value of the descriptors

# How the weights in safetensors are used, for their metadata.
LAYOUT = {
    "images": "RGB, (N, 3, image_height, image_width), (x / 255 - mean) / std for each channel",
    "convolution": "weight (output, input / groups, height, width), bias (output)",
    "dense": "weight (output, input), bias (output)",
    "batch_norm": "gamma * (x - running_mean) / sqrt(running_var + batch_norm_eps) + beta",
}


def arguments():
    parser = errors.Parser(
        prog="python -m cgd.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("prefix", metavar="PREFIX", help="the checkpoint: its path up to -symbol.json")
    add("file", metavar="FILE", help="the file to write: its name ends with .onnx or .safetensors")
    add = parser.add_argument_group("ONNX only").add_argument
    add("--fold", action="store_true", help="fold batch norm into the convolutions")
    add("--dynamic-size", action="store_true", help="leave height and width of the images free")
    help_ = "the input is (N, H, W, 3) uint8, resized images; the model normalises them"
    add("--with-preprocessing", action="store_true", help=help_)
    options = parser.parse_args()
    files.check_output("FILE", options.file, (".onnx", ".safetensors"))
    if options.file.endswith(".safetensors") and (options.fold or options.dynamic_size or options.with_preprocessing):
        raise InputError(f"{options.file}: --fold, --dynamic-size and --with-preprocessing are for ONNX only")
    return options


def write_safetensors(checkpoint, file):
    """Writes the weights of a checkpoint, with metadata that say how they are used."""
    from cgd.network import formats, graphs
    from cgd.system.environment import git_commit

    description = checkpoint.description
    metadata = {key: json.dumps(description[key]) for key in descriptions.RELEASED}
    metadata.update(LAYOUT, batch_norm_eps=graphs.batch_norm_eps(checkpoint.symbol))
    metadata["commit"] = git_commit() or "unknown"
    arrays = graphs.with_fixed_gammas(checkpoint.symbol, dict(checkpoint.arg_params, **checkpoint.aux_params))
    formats.write_safetensors(file, arrays, metadata)
    print(f"written: {file}")


def compare(checkpoint, part, options):
    """Prints how far onnxruntime's descriptors are from MXNet's, if it is installed. part : the written model

    Raises InputError if they are too far from each other.
    """
    from cgd.network import onnx_graph

    try:
        optional_package("onnxruntime")
    except InputError as error:
        print(f"not compared with MXNet: {error}")
        return
    worst = onnx_graph.difference(checkpoint, part, options.with_preprocessing)
    if not worst < TOLERANCE:
        raise InputError(f"{options.file}: not written; its descriptors differ from MXNet's by {worst:.1e}")
    print(f"onnxruntime's descriptors differ from MXNet's by {worst:.1e} at most")


def main():
    options = arguments()
    descriptions.must_be_in_float32(options.prefix, descriptions.read(options.prefix))

    # Not before: these import MXNet, which takes far longer than all the above.
    from cgd.network import onnx_graph
    from cgd.network.checkpoints import Checkpoint
    from cgd.system.environment import memory_for

    checkpoint = Checkpoint(options.prefix)
    if options.file.endswith(".safetensors"):
        write_safetensors(checkpoint, options.file)
        return
    model = onnx_graph.export(
        checkpoint,
        fold=options.fold,
        dynamic_size=options.dynamic_size,
        with_preprocessing=options.with_preprocessing,
    )
    with memory_for("close other programs, or use another machine"), files.replacing(options.file) as part:
        part.write_bytes(model.SerializeToString())
        compare(checkpoint, str(part), options)
    print(f"written: {options.file}")


if __name__ == "__main__":
    errors.run(main)
