"""A graph in int8, for CPUs, by MXNet's quantisation."""

import json

import numpy as np

from cgd.network import graphs, onednn
from cgd.system.environment import mx
from cgd.system.errors import InputError

BACKEND = "MKLDNN_QUANTIZE"  # MXNet's pass that fuses operators, before and after quantisation


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


def similarities(one, other, batches):
    """The cosine similarities of the descriptors of two checkpoints, (N,)."""
    first, second = one.graph(mx.cpu()), other.graph(mx.cpu())
    found = [(first(x).asnumpy() * second(x).asnumpy()).sum(axis=1) for x in batches]
    return np.concatenate(found)
