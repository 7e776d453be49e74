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

from cgd.network import descriptions
from cgd.system import errors, files
from cgd.system.errors import InputError

TOLERANCE = 1e-4  # of each value of the descriptors


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


def main():
    options = arguments()
    descriptions.read(options.prefix)  # so that a wrong name is reported at once

    # Not before: these import MXNet, which takes far longer than all the above.
    from cgd.network import onnx_graph
    from cgd.network.checkpoints import Checkpoint

    checkpoint = Checkpoint(options.prefix)
    model = onnx_graph.export(checkpoint, options.fold, options.dynamic_size, options.with_preprocessing)
    with files.replacing(options.file) as part:
        part.write_bytes(model.SerializeToString())
        if importlib.util.find_spec("onnxruntime"):
            worst = onnx_graph.difference(checkpoint, str(part), options.with_preprocessing)
            if not worst < TOLERANCE:
                raise InputError(f"{options.file}: not written; its descriptors differ from MXNet's by {worst:.1e}")
            print(f"onnxruntime's descriptors differ from MXNet's by {worst:.1e} at most")
        else:
            print("not compared with MXNet: onnxruntime is not installed (pip install onnxruntime)")
    print(f"written: {options.file}")


if __name__ == "__main__":
    errors.run(main)
