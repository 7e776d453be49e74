"""Pictures in, descriptors out: a network together with the preparation of its pictures."""

import operator
import os
from pathlib import Path

import numpy as np

from cgd.data import images
from cgd.data.datasets import Record
from cgd.data.loader import Unreadable
from cgd.network import descriptions, runtimes
from cgd.retrieval.evaluation import Extractor, Preprocessing, finite, network_input
from cgd.system.environment import memory_for, mx
from cgd.system.errors import InputError


def load(name, runtime=None, gpu=0, dtype="float32", batch_size=32):
    """Loads a network, to describe pictures with: model = cgd.load(PREFIX); model.describe(paths).

    name : prefix of a checkpoint, its path up to -symbol.json; or FILE.onnx, which cgd.export wrote
    runtime : "mxnet", or "onnx" for onnxruntime; by default what the name asks for
    gpu : number of the GPU, -1 for the CPU; without a GPU, 0 is the CPU too
    dtype : "float32", or "bfloat16" on a CPU
    batch_size : pictures that the network takes at a time, at most

    Returns a `Model`. Raises InputError if the files are missing or invalid, if the runtime or device is not there, and
    for any other value that is not expected.
    """
    try:
        gpu, batch_size = operator.index(gpu), operator.index(batch_size)
    except TypeError:
        raise InputError(f"gpu {gpu!r}, batch_size {batch_size!r}: expected whole numbers")
    if batch_size < 1:
        raise InputError(f"batch_size {batch_size}: expected 1 or more")
    return Model(str(name), runtime, gpu, dtype, batch_size)


class Model:
    """Describes pictures, prepared as test.py prepares them. `load` makes one.

    name : as given to `load`
    description : dict, that of cgd/network/descriptions.py: the network's options, image size, mean and std
    dim : dimensions of a descriptor
    """

    def __init__(self, name, runtime, gpu, dtype, batch_size):
        runtime = descriptions.choose_runtime(name, runtime, dtype)
        source, self.ctx, _ = runtimes.open_network(name, runtime, gpu)
        self.name, self.batch_size = name, batch_size
        self.description = source.description
        self.dim, self.preprocessing = self.description["dim"], preprocessing_of(self.description)
        self.embed = source.graph(self.ctx, self.preprocessing.size, dtype)

    def describe(self, pictures):
        """Descriptors (N, dim), float32, rows of length 1.

        pictures : list of N paths, or arrays (H, W, 3), uint8, RGB. They are resized to the network's input; crop them
            yourself if the network was trained on crops

        Pictures are decoded in this process; python -m cgd.describe has processes for it, and keeps what is done.
        Raises InputError, naming the file, for one that cannot be read, and for descriptors that are not finite.
        Raises ValueError for an array of another shape.
        """
        if isinstance(pictures, (str, Path)):
            raise ValueError(f"expected a list of pictures, as in [{str(pictures)!r}]")
        pictures = list(pictures)
        batch_size = min(self.batch_size, len(pictures))
        found = np.empty((len(pictures), self.dim), np.float32)
        for start in range(0, len(pictures), self.batch_size):
            batch = [self._prepared(picture) for picture in pictures[start : start + self.batch_size]]
            x = network_input(mx.nd.array(np.stack(batch), dtype="uint8"), self.preprocessing, self.ctx, batch_size)
            found[start : start + len(batch)] = finite(self.embed(x).asnumpy()[: len(batch)])
        return found

    def _prepared(self, picture):
        """(H, W, 3) uint8 of the network's size."""
        if isinstance(picture, (str, Path)):
            return images.resize(images.read_image(picture), self.preprocessing.size).asnumpy()
        pixels = np.asarray(picture)
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
            raise ValueError(f"expected (H, W, 3) uint8 arrays or paths, found {pixels.dtype} {pixels.shape}")
        return images.resize(mx.nd.array(pixels, dtype="uint8"), self.preprocessing.size).asnumpy()


def preprocessing_of(description):
    """The `Preprocessing` of a network's pictures."""
    size = description["image_width"], description["image_height"]
    return Preprocessing(size, description["mean"], description["std"])


def stream(options, root, pictures):
    """Describes files as a command does, with processes that decode, and reports and skips unreadable ones.

    options : prefix, runtime, gpu, dtype, batch_size and num_workers, as cgd.describe has them
    root, pictures : as pictures.find returns

    Yields (numbers (n,) of pictures, their descriptors (n, dim)), batch by batch.
    """
    records = [
        Record(os.path.join(root, picture.path), number, picture.crop, number)
        for number, picture in enumerate(pictures)
    ]
    preprocessing = preprocessing_of(descriptions.read(options.prefix))
    extractor = Extractor(records, preprocessing, options.batch_size, options.num_workers, Unreadable(None))
    source, ctx, _ = runtimes.open_network(options.prefix, options.runtime, options.gpu)
    embed, start = source.graph(ctx, preprocessing.size, options.dtype), 0
    with memory_for(f"try --batch-size {max(1, options.batch_size // 2)}"):
        for vectors, readable in extractor.batches(embed, ctx):
            yield start + np.flatnonzero(readable), vectors[readable]
            start += len(readable)
