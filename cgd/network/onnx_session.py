"""Runs networks in onnxruntime: on the GPUs of its CUDA provider, which MXNet has no code for, or on a CPU.

pip install onnxruntime 'numpy<2', or for GPUs: pip install 'onnxruntime-gpu[cuda,cudnn]' 'numpy<2'
"""

import copy
import os

from cgd.network import descriptions, onnx_graph
from cgd.network.onnx_graph import INPUT, OUTPUT
from cgd.system.environment import find_gpu, mx
from cgd.system.errors import InputError
from cgd.system.packages import optional_package

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
INSTALL = "pip install 'onnxruntime-gpu[cuda,cudnn]' 'numpy<2'"


class Network:
    """A network in onnxruntime. It is evaluated as a `checkpoints.Checkpoint` is, by `graph` and `pooled`.

    source : the name of a file that cgd.export wrote; or a `Checkpoint`, which is translated in memory: this needs the
        package onnx, too
    gpu : as in environment.context, which chooses the device in the same way

    provider : the name of onnxruntime's execution provider
    """

    def __init__(self, source, gpu):
        self.source, self.gpu = source, gpu
        if isinstance(source, str):
            self.runtime = optional_package("onnxruntime")
        else:
            self.runtime = optional_package("onnxruntime", "onnx onnxruntime")
            optional_package("onnx")
        built_with_cuda = CUDA in self.runtime.get_available_providers()
        found = find_gpu(gpu, "" if built_with_cuda else f"this onnxruntime has no CUDA provider ({INSTALL})")
        self.provider = CUDA if found else CPU

    @property
    def description(self):
        """dict, that of cgd/network/descriptions.py"""
        return descriptions.read(self.source) if isinstance(self.source, str) else self.source.description

    def graph(self, ctx, size, dtype="float32"):
        """A function of images (N, 3, H, W) -> embeddings (N, dim) on the device `ctx`. Images pass through the CPU.

        size : (W, H) of the images

        Raises InputError if onnxruntime cannot load the model, and for a model of other images.
        """
        session = self._session(size)

        def embed(x):
            return mx.nd.array(session.run([OUTPUT], {INPUT: x.asnumpy()})[0], ctx=ctx)

        return embed

    def pooled(self):
        """{name: Network}, as Checkpoint.pooled; of a checkpoint only."""
        found = {}
        for name, vectors in self.source.pooled().items():
            found[name] = copy.copy(self)
            found[name].source = vectors
        return found

    def _session(self, size):
        name, model = self.source, self.source
        if not isinstance(self.source, str):
            name, model = self.source.prefix, _translated(self.source, size)
        options = self.runtime.SessionOptions()
        options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
        options.log_severity_level = 3  # errors
        providers = [CPU]
        if self.provider == CUDA:
            if hasattr(self.runtime, "preload_dlls"):  # since onnxruntime 1.21
                self.runtime.preload_dlls()
            providers = [(CUDA, {"device_id": self.gpu, "use_tf32": 0}), CPU]
        try:
            session = self.runtime.InferenceSession(model, options, providers, enable_fallback=0)
        except Exception as error:  # onnxruntime's exceptions have no common type
            raise InputError(f"{name}: onnxruntime cannot load the model: {error}")
        if session.get_providers()[0] != self.provider:
            advice = f"{INSTALL}, or use --gpu -1 for the CPU"
            raise InputError(f"--gpu {self.gpu}: onnxruntime could not start its CUDA provider; {advice}")
        _check_input(session.get_inputs()[0], name, size)
        return session


def _translated(checkpoint, size):
    """The bytes of an ONNX model of a checkpoint, for images of `size` (W, H)."""
    checkpoint = copy.copy(checkpoint)
    checkpoint.description = dict(checkpoint.description, image_width=size[0], image_height=size[1])
    return onnx_graph.export(checkpoint).SerializeToString()


def _check_input(image, name, size):
    """Raises InputError unless the model takes normalised images of `size` (W, H)."""
    if image.name != INPUT or image.type != "tensor(float)":
        raise InputError(f"{name}: takes images of type {image.type}; export it without --with-preprocessing")
    height, width = image.shape[2:]
    fits = all(isinstance(side, str) or side == wanted for side, wanted in ((width, size[0]), (height, size[1])))
    if not fits:
        raise InputError(f"{name}: is for images of {width} x {height}; export it with --dynamic-size for other sizes")
