"""A graph in int8, for CPUs, by MXNet's quantisation."""

import json
import sys
from contextlib import contextmanager

import numpy as np

from cgd.network import graphs, onednn
from cgd.system.environment import mx
from cgd.system.errors import InputError, uninterrupted
from cgd.system.packages import optional_package

BACKEND = "MKLDNN_QUANTIZE"  # MXNet's pass that fuses operators, before and after quantisation


def quantize_and_compare(checkpoint, x, batch_size):
    """The graph of a float32 `Checkpoint` in int8, its parameters, and the cosine similarities of both's descriptors.

    x : (N, 3, H, W) normalised images, all of which are used
    similarities : (2, N), NaN for what is not finite: as they are, and without the mean of the float32 descriptors. A
        descriptor that is this mean counts as it is, in both.

    Raises InputError as `quantize` does.
    """
    size = (x.shape[3], x.shape[2])
    count = min(batch_size, len(x))
    padded = mx.io.NDArrayIter(x, batch_size=count, last_batch_handle="pad")  # the last batch is filled with the first
    values = dict(checkpoint.arg_params, **checkpoint.aux_params)
    symbol, values = quantize(checkpoint.symbol, values, padded, size)
    one, other = checkpoint.graph(mx.cpu()), onednn.for_inference(symbol, values, mx.cpu(), size, "int8")
    batches = [x[first : first + count] for first in range(0, len(x), count)]
    found = [np.concatenate([net(batch).asnumpy() for batch in batches]) for net in (one, other)]
    return symbol, values, similarities(*found)


def similarities(embeddings, others):
    """(2, N): the cosine similarities of (N, dim) and (N, dim), as they are, and without the mean of the first.

    A row of the first that differs from their mean by rounding only counts as it is, in both.
    """

    def cosine(a, b):
        with np.errstate(invalid="ignore", divide="ignore"):
            return (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))

    mean = embeddings.mean(axis=0)
    whole, rest = cosine(embeddings, others), cosine(embeddings - mean, others - mean)
    alone = np.linalg.norm(embeddings - mean, axis=1) < 1e-5
    return np.stack([whole, np.where(alone, whole, rest)])


def quantize(symbol, values, batches, size):
    """The graph in int8, and its parameters.

    symbol : a float32 graph with the input "data" · values : {name: NDArray}, all its parameters
    batches : mx.io.DataIter of normalised images (N, 3, H, W), whose feature maps give the ranges
    size : (W, H) of the images

    A stop, such as Ctrl-C, is delayed until MXNet has finished. Raises InputError if MXNet cannot quantise the graph.
    """
    optional_package("scipy")  # MXNet looks for it, although it computes the ranges itself
    symbol, values, _ = onednn.fastest(symbol, values, size)
    symbol = symbol.get_backend_symbol(BACKEND)
    nodes = json.loads(symbol.tojson())["nodes"]
    dense = [node["name"] for node in nodes if "fully_connected" in node["op"]]
    try:
        with uninterrupted(), _errors_of_callbacks():
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


@contextmanager
def _errors_of_callbacks():
    """Raises at the end the first exception of a Python function that MXNet called; ctypes would only print it.

    MXNet calls the functions that collect the feature maps' histograms. Without one of them, ranges would be wrong.
    """
    found, hook = [], sys.unraisablehook
    sys.unraisablehook = lambda unraisable: found.append(unraisable.exc_value)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        if found:
            raise found[0]
