"""Exports a checkpoint to ONNX, for runtimes other than MXNet.

    python -m cgd.export checkpoints/CGD.CUB200.C_concat_MG.ResNet50v.dim1536 released.onnx
    python -m cgd.export runs/demo-MG-1/last demo.onnx --fold --with-preprocessing

The model has one input, "image": (N, 3, H, W) float32, (x / 255 - mean) / std for each channel; and one output,
"descriptor": (N, dim) float32, rows of length 1. N is free. Its metadata say how images must be prepared. If
onnxruntime is installed, the descriptors of a batch of noise are compared with MXNet's.

Needs the package onnx; onnxruntime for the comparison: pip install onnx onnxruntime
"""

import argparse
import importlib.util
import json

import numpy as np

from cgd.network.checkpoints import Checkpoint
from cgd.network.onnx_graph import INPUT, OUTPUT, translate
from cgd.system import environment, errors, files
from cgd.system.environment import mx
from cgd.system.errors import InputError

TOLERANCE = 1e-4  # of each value of the descriptors
KEYS = ("config", "dim", "backbone", "architecture", "fusion", "dataset", "cropped", "image_width", "image_height")


def arguments():
    parser = errors.Parser(
        prog="python -m cgd.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("prefix", metavar="PREFIX", help="the checkpoint: its path up to -symbol.json")
    add("file", metavar="FILE.onnx", help="the file to write")
    add("--fold", action="store_true", help="fold batch norm into the convolutions")
    add("--dynamic-size", action="store_true", help="leave height and width of the images free")
    help_ = "the input is (N, H, W, 3) uint8, resized images; the model normalises them"
    add("--with-preprocessing", action="store_true", help=help_)
    options = parser.parse_args()
    if not options.file.endswith(".onnx"):
        raise InputError(f"{options.file}: expected a name that ends with .onnx")
    files.must_be_writable(options.file)
    return options


def export(checkpoint, fold=False, dynamic_size=False, with_preprocessing=False):
    """The onnx.ModelProto of a `Checkpoint`; see `onnx_graph.translate`."""
    description = checkpoint.description
    metadata = {key: json.dumps(description[key]) for key in (*KEYS, "mean", "std")}
    metadata["commit"] = environment.git_commit() or "unknown"
    return translate(
        checkpoint.symbol,
        dict(checkpoint.arg_params, **checkpoint.aux_params),
        (description["image_width"], description["image_height"]),
        metadata,
        dynamic_size,
        fold,
        (description["mean"], description["std"]) if with_preprocessing else None,
    )


def difference(checkpoint, file, with_preprocessing=False):
    """The largest difference between onnxruntime's and MXNet's descriptors of two images of noise."""
    from cgd.data import images

    description = checkpoint.description
    shape = (2, description["image_height"], description["image_width"], 3)
    pictures = np.random.RandomState(0).randint(0, 256, shape).astype(np.uint8)
    x = images.normalise(mx.nd.array(pictures, dtype="uint8"), description["mean"], description["std"])
    session = environment.optional_package("onnxruntime").InferenceSession(file, providers=["CPUExecutionProvider"])
    theirs = session.run([OUTPUT], {INPUT: pictures if with_preprocessing else x.asnumpy()})[0]
    return float(np.abs(theirs - checkpoint.graph(mx.cpu())(x).asnumpy()).max())


def main():
    options = arguments()
    checkpoint = Checkpoint(options.prefix)
    model = export(checkpoint, options.fold, options.dynamic_size, options.with_preprocessing)
    with files.replacing(options.file) as part:
        part.write_bytes(model.SerializeToString())
        if importlib.util.find_spec("onnxruntime"):
            worst = difference(checkpoint, str(part), options.with_preprocessing)
            if not worst < TOLERANCE:
                raise InputError(f"{options.file}: not written; its descriptors differ from MXNet's by {worst:.1e}")
            print(f"onnxruntime's descriptors differ from MXNet's by {worst:.1e} at most")
        else:
            print("not compared with MXNet: onnxruntime is not installed (pip install onnxruntime)")
    print(f"written: {options.file}")


if __name__ == "__main__":
    errors.run(main)
