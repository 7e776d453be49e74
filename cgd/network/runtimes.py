"""The program that runs a network: MXNet for a checkpoint, or onnxruntime for a checkpoint or an ONNX file."""

from collections import namedtuple

from cgd.network.checkpoints import Checkpoint
from cgd.network.descriptions import is_onnx
from cgd.system import environment

# source : a Checkpoint, or an onnx_session.Network, with `description`, `graph` and `pooled`
# ctx : the device of the network's input and output
# facts : dict, the runtime, its device, and the versions of the libraries
Opened = namedtuple("Opened", "source ctx facts")


def open_network(name, runtime, gpu):
    """The `Opened` network.

    name : prefix of a checkpoint, or a file that cgd.export wrote
    runtime : "mxnet" or "onnx", as descriptions.choose_runtime returns
    gpu : as in environment.context

    Raises InputError if the files are missing or invalid, or if the runtime or the device is not there.
    """
    source, versions = name if is_onnx(name) else Checkpoint(name), environment.versions()
    if runtime == "mxnet":
        ctx = environment.context(gpu)
        return Opened(source, ctx, {"runtime": "mxnet", "device": str(ctx), "versions": versions})

    from cgd.network import onnx_session

    source = onnx_session.Network(source, gpu)
    versions["onnxruntime"] = source.runtime.__version__
    facts = {"runtime": "onnx", "device": source.provider, "versions": versions}
    return Opened(source, environment.mx.cpu(), facts)
