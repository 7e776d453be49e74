"""Checkpoints: a pair of files in MXNet's symbolic format, and a description of the network and its input.

PREFIX-symbol.json and PREFIX-0000.params are read by `mx.model.load_checkpoint(PREFIX, 0)` of MXNet since 1.3, so the
authors' evaluation code can use them as well. PREFIX.json, the description, is specific to this project; the authors'
checkpoint has none.
"""

import copy
import json
from contextlib import suppress
from pathlib import Path

import numpy as np

from cgd.network import descriptions, graphs, model, onednn, weights
from cgd.network.parameters import NOT_UTF8, read_arrays, write_arrays
from cgd.system.environment import mx, versions
from cgd.system.errors import InputError
from cgd.system.files import replacing, to_disk


class Checkpoint:
    """A checkpoint, loaded and validated.

    symbol : the graph, with one input, "data"
    arg_params, aux_params : {name: NDArray}, exactly the parameters of the graph
    description : dict, that of cgd/network/descriptions.py
    """

    def __init__(self, prefix):
        """Raises InputError if files are missing, unreadable or inconsistent, and for an ONNX file."""
        self.prefix = str(prefix)
        descriptions.must_be_a_checkpoint(self.prefix)
        self.description = descriptions.read(self.prefix)
        self.symbol = _read_symbol(self.prefix + "-symbol.json")
        self.arg_params, self.aux_params = _read_params(self.prefix + "-0000.params")
        self._check()

    def _check(self):
        arguments = set(self.symbol.list_arguments())
        if "data" not in arguments:
            raise InputError(f"{self.prefix}-symbol.json: expected a graph with the input 'data'")
        if len(self.symbol) != 1:
            raise InputError(f"{self.prefix}-symbol.json: expected one output, found {len(self.symbol)}")
        dtype, described = "int8" if graphs.is_int8(self.symbol) else "float32", self.description["dtype"]
        if dtype != described:
            raise InputError(
                f"{self.prefix}-symbol.json: is in {dtype}, but the dtype in {self.prefix}.json is {described} (the "
                "default if that is missing); the files are of different checkpoints"
            )
        file = self.prefix + "-0000.params"
        states = set(self.symbol.list_auxiliary_states())
        weights.check_names((arguments - {"data"}) | states, set(self.arg_params) | set(self.aux_params), file)
        height, width = self.description["image_height"], self.description["image_width"]
        try:
            arg_shapes, outputs, aux_shapes = self.symbol.infer_shape_partial(data=(1, 3, height, width))
        except (mx.base.MXNetError, TypeError, ValueError):
            raise InputError(f"{self.prefix}-symbol.json: not a network for images of {width} x {height}")
        if outputs and outputs[0]:
            if len(outputs[0]) != 2:
                raise InputError(f"{self.prefix}-symbol.json: gives {outputs[0]}; expected descriptors (N, dim)")
            self._check_dim(outputs[0][1])
        expected = dict(zip(self.symbol.list_arguments(), arg_shapes))
        expected.update(zip(self.symbol.list_auxiliary_states(), aux_shapes))
        for name, value in dict(self.arg_params, **self.aux_params).items():
            if expected[name] and expected[name] != value.shape:
                raise InputError(f"{file}: {name} has shape {value.shape}, expected {expected[name]}")
            if dtype == "float32" and value.dtype != np.float32:
                raise InputError(f"{file}: {name} is in {np.dtype(value.dtype)}; expected float32")
            if not np.isfinite(value.asnumpy()).all():
                raise InputError(f"{file}: {name} contains values that are not finite")

    def _check_dim(self, dim):
        """Compares the graph's dimensions with those that PREFIX.json gives, or sets them if it does not."""
        given = descriptions.of_file(self.prefix + ".json").get("dim", dim)
        if given != dim:
            raise InputError(
                f"{self.prefix}-symbol.json: gives {dim} dimensions, but {self.prefix}.json says {given}; the files "
                "are of different checkpoints"
            )
        self.description["dim"] = dim

    def graph(self, ctx, size=None, dtype="float32"):
        """A block of the graph on the device `ctx`, for inference: images (N, 3, H, W) -> embeddings (N, dim).

        size : (W, H); without it, the images' size in training
        dtype : "float32", or "bfloat16" for faster convolutions on a CPU; a checkpoint in int8 stays in int8

        Raises InputError as `running_dtype` does, and if this CPU cannot run the network in bfloat16.
        """
        size = size or (self.description["image_width"], self.description["image_height"])
        dtype = self.running_dtype(ctx, dtype)
        return onednn.for_inference(self.symbol, dict(self.arg_params, **self.aux_params), ctx, size, dtype)

    def running_dtype(self, ctx, dtype="float32"):
        """The precision of the convolutions if `dtype` is asked for: "int8" for a checkpoint in int8, else `dtype`.

        Raises InputError for a checkpoint in int8 or the dtype bfloat16 on a GPU, and for both together.
        """
        if self.description["dtype"] == "int8":
            if dtype != "float32":
                raise InputError(f"{self.prefix}: is in int8, and cannot be run in {dtype}")
            dtype = "int8"
        if dtype != "float32" and ctx.device_type != "cpu":
            raise InputError(f"{dtype} is for CPUs: give --gpu -1")
        return dtype

    def pooled(self):
        """{name: Checkpoint} whose embeddings are the pooled vectors, before their Dense layers, with length 1.

        The names are the letters of the configuration; architecture B has one vector of all. Raises InputError for a
        checkpoint in int8.
        """
        if self.description["dtype"] == "int8":
            raise InputError(f"{self.prefix}: is in int8, whose graph has no separate pooled vectors")
        config = self.description["config"]
        names = [config] if self.description["architecture"] == "B" else config
        found, vectors = {}, graphs.pooled_vectors(self.symbol)
        if len(vectors) != len(names):
            raise InputError(f"{self.prefix}: has {len(vectors)} branches, but its description {len(names)}: {config}")
        for name, symbol in zip(names, vectors):
            found[name] = copy.copy(self)
            found[name].symbol = symbol
        return found

    def load_into(self, net):
        """Sets the parameters of a `model.CGD` by name; its classifier, which checkpoints lack, is not changed.

        Raises InputError for a checkpoint in int8, and one that names parameters that are missing, unknown or of
        another shape.
        """
        descriptions.must_be_in_float32(self.prefix, self.description)
        parameters = {
            name: parameter
            for name, parameter in net.collect_params().items()
            if not name.startswith(model.CLASSIFIER_PREFIX)
        }
        weights.set_parameters(parameters, dict(self.arg_params, **self.aux_params), self.prefix + "-0000.params")


def save(net, prefix, description):
    """Saves a `model.CGD`, without its classifier, and its description. A forward pass must have set all shapes.

    `description` is a dict that JSON can represent; the network's options and the library versions are added to it.
    """
    symbol, values = _graph_of(net)
    write(prefix, symbol, values, dict(net.options, **description))


def write(prefix, symbol, values, description):
    """Writes a graph, its parameters {name: NDArray}, and its description with the library versions.

    If the process is killed between the files, there is no description: none of an older checkpoint that is replaced.
    """
    learned, states = graphs.arguments_and_states(symbol, values)
    params = {"arg:" + name: value for name, value in learned.items()}
    params.update({"aux:" + name: value for name, value in states.items()})
    description = dict(description, versions=versions())
    # All are written before any is renamed. The description is renamed last.
    with replacing(prefix + ".json") as text:
        text.write_text(json.dumps(description, indent=1) + "\n")
        with replacing(prefix + "-symbol.json") as graph:
            graph.write_text(graphs.text_of(symbol))
            with replacing(prefix + "-0000.params") as part:
                write_arrays(part, params)
                for written in (part, graph, text):  # before the old description goes, so that a kill has no time
                    to_disk(written)
                with suppress(FileNotFoundError):
                    Path(prefix + ".json").resolve().unlink()  # if it is a link, the file: the link stays, as above


def inference(net, ctx, size):
    """A block that computes the embeddings of a `model.CGD` as it is now, as `Checkpoint.graph` does. On a CPU, a copy.

    A forward pass must have set all shapes. size : (W, H) of the images
    """
    return onednn.for_inference(*_graph_of(net), ctx, size) if ctx.device_type == "cpu" else net.embed


def _graph_of(net):
    """The graph of a network without its classifier, and {name: NDArray}, the parameters of the network.

    A new network is traced, because Gluon caches the variables of one that has run, from before the shapes were known.
    """
    # On a CPU, a running convolution may be changing the memory layout of its weights in place; reading them meanwhile
    # gives a mixture of both layouts.
    mx.nd.waitall()
    values = {name: parameter.data(parameter.list_ctx()[0]) for name, parameter in net.collect_params().items()}
    traced = model.CGD(**net.options)
    for name, parameter in traced.collect_params().items():
        parameter.shape = values[name].shape
    return traced(mx.sym.var("data")), values


def _read_symbol(file):
    try:
        _check_graph(json.loads(Path(file).read_text(encoding="utf-8")))
        return mx.sym.load(file)
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}")
    except UnicodeEncodeError:
        raise InputError(f"{file}: {NOT_UTF8}")
    except (mx.base.MXNetError, ValueError, RecursionError) as error:
        reason = "" if isinstance(error, mx.base.MXNetError) else f" ({error})"
        raise InputError(f"{file}: not a graph that MXNet can read{reason}; the file may be truncated")


def _check_graph(graph):
    """Raises ValueError for invalid names and for links to missing nodes, which would crash MXNet."""
    try:
        nodes = graph["nodes"]
        links = [(index, link) for index, node in enumerate(nodes) for link in node["inputs"]]
        links += [(len(nodes), link) for link in graph["heads"]]
        names = [node["name"] for node in nodes]
        outputs = [_outputs(node) for node in nodes]
        valid = all(0 <= link[0] < index and 0 <= link[1] < outputs[link[0]] for index, link in links)
    except (TypeError, KeyError, IndexError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__} {error}")
    if not valid or not graph["heads"]:
        raise ValueError("invalid node link")
    if not all(isinstance(name, str) and name.isascii() and name.isprintable() for name in names):
        raise ValueError("invalid node name")


def _outputs(node):
    """The number of a node's outputs: in int8, the values and their range, least and greatest."""
    attributes = node.get("attrs", {})
    in_int8 = graphs.is_quantized(node) or node["op"] == "_contrib_requantize"
    if in_int8 and attributes.get("enable_float_output", "false").lower() != "true":
        return 3
    return int(attributes.get("num_outputs", 1))


def _read_params(file):
    try:
        return _split_params(read_arrays(file))
    except ValueError as error:
        raise InputError(f"{file}: {error}")


def _split_params(params):
    """{"arg:NAME": value, "aux:NAME": value} -> ({NAME: value}, {NAME: value})."""
    if any(name[:4] not in ("arg:", "aux:") for name in params):
        raise ValueError("expected names that start with arg: or aux:")
    by_kind = [{name[4:]: value for name, value in params.items() if name[:4] == kind} for kind in ("arg:", "aux:")]
    return by_kind[0], by_kind[1]
