"""Translates the graph of a checkpoint to ONNX.

MXNet's own exporter is not used: it computes the root of GeM the wrong way round, and fails for L2 normalisation.
The onnx package builds and checks the model: pip install onnx 'numpy<2'.
"""

import json

import numpy as np

from cgd.network import graphs
from cgd.network.descriptions import RELEASED, must_be_in_float32
from cgd.network.graphs import attribute
from cgd.system.environment import git_commit, mx
from cgd.system.errors import InputError
from cgd.system.packages import optional_package

OPSET, IR_VERSION = 13, 8
INPUT, OUTPUT = "image", "descriptor"
KEYS = [key for key in RELEASED if key != "dtype"]  # of the checkpoint's description, for the model's metadata


def export(checkpoint, *, fold=False, dynamic_size=False, with_preprocessing=False):
    """The onnx.ModelProto of a `Checkpoint` in float32; see `translate`."""
    description = checkpoint.description
    must_be_in_float32(checkpoint.prefix, description)
    metadata = {key: json.dumps(description[key]) for key in KEYS}
    metadata["commit"] = git_commit() or "unknown"
    return translate(
        checkpoint.symbol,
        dict(checkpoint.arg_params, **checkpoint.aux_params),
        (description["image_width"], description["image_height"]),
        metadata,
        fold=fold,
        dynamic_size=dynamic_size,
        preprocessing=(description["mean"], description["std"]) if with_preprocessing else None,
    )


def difference(checkpoint, file, with_preprocessing=False):
    """The largest difference between onnxruntime's and MXNet's descriptors of two images of noise."""
    description = checkpoint.description
    shape = (2, description["image_height"], description["image_width"], 3)
    pictures = np.random.RandomState(0).randint(0, 256, shape).astype(np.uint8)
    x = (pictures / 255 - description["mean"]) / description["std"]
    x = x.transpose(0, 3, 1, 2).astype(np.float32)
    session = optional_package("onnxruntime").InferenceSession(file, providers=["CPUExecutionProvider"])
    theirs = session.run([OUTPUT], {INPUT: pictures if with_preprocessing else x})[0]
    return float(np.abs(theirs - checkpoint.graph(mx.cpu())(mx.nd.array(x)).asnumpy()).max())


def translate(symbol, values, size, metadata, *, fold=False, dynamic_size=False, preprocessing=None):
    """An onnx.ModelProto with one input, "image", and one output, "descriptor" (N, dim) float32. N is free.

    symbol : the graph, with the input "data" · values : {name: NDArray}, all its parameters
    size : (W, H) of the images
    metadata : {key: text}, stored in the model
    fold : folds batch norm into the convolution before it
    dynamic_size : leaves height and width free, too
    preprocessing : None, or (mean, std) of evaluation.Preprocessing. The input is then (N, H, W, 3) uint8 instead of
        normalised (N, 3, H, W) float32

    Raises InputError that names a node which it cannot translate, and for a graph that onnx finds invalid.
    """
    onnx = optional_package("onnx")
    if fold:
        symbol, values = graphs.fold_batch_norm(symbol, values)
    written = json.loads(symbol.tojson())
    nodes = written["nodes"]
    values = {name: value.asnumpy() for name, value in graphs.with_fixed_gammas(symbol, values).items()}
    graph = _Graph(onnx, nodes, values, _shapes(symbol, size), dynamic_size)
    name = _output_name(written, graph.shapes)
    sides = ["height", "width"] if dynamic_size else [size[1], size[0]]
    kind, shape = onnx.TensorProto.FLOAT, ["batch", 3, *sides]
    if preprocessing:
        kind, shape = onnx.TensorProto.UINT8, ["batch", *sides, 3]
        graph.normalise(*preprocessing)
    for node in nodes:
        graph.add(node)
    graph.emit("Identity", [name], OUTPUT)
    dim = graph.shapes[name + "_output"][1]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.made,
            "CGD",
            [onnx.helper.make_tensor_value_info(INPUT, kind, shape)],
            [onnx.helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, ["batch", dim])],
            graph.initialisers,
        ),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="cgd",
    )
    onnx.helper.set_model_props(model, metadata)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise InputError(f"the translated graph is not valid ONNX: {' '.join(str(error).split())[:200]}")
    return model


def _output_name(written, shapes):
    """The name of the node whose only output is the graph's. Raises InputError if there is none, and for a name clash.

    written : the graph as a dict · shapes : those of `_shapes`
    """
    nodes, heads = written["nodes"], written["heads"]
    at, number = heads[-1][:2]
    name = nodes[at]["name"]
    if len(heads) > 1 or number or name + "_output" not in shapes:
        raise InputError(f"output {number} of the node {name!r}: expected the only output of a node and of the graph")
    for node in nodes:
        if node["name"] in (INPUT, OUTPUT):
            raise InputError(f"the node {node['name']!r} has the name of the ONNX model's input or output")
    return name


class _Graph:
    """The nodes and initialisers of an ONNX graph, while it is made."""

    def __init__(self, onnx, nodes, values, shapes, dynamic_size):
        self.onnx, self.nodes, self.values, self.shapes, self.dynamic_size = onnx, nodes, values, shapes, dynamic_size
        self.made, self.initialisers, self.data = [], [], INPUT

    def emit(self, op, inputs, outputs, **attributes):
        outputs = [outputs] if isinstance(outputs, str) else outputs
        self.made.append(self.onnx.helper.make_node(op, inputs, outputs, name=outputs[0], **attributes))
        return outputs[0]

    def constant(self, name, value, dtype=np.float32):
        self.initialisers.append(self.onnx.numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def normalise(self, mean, std):
        """(N, H, W, 3) uint8 -> (N, 3, H, W), as images.normalise."""
        x = self.emit("Cast", [INPUT], "image_float", to=self.onnx.TensorProto.FLOAT)
        x = self.emit("Transpose", [x], "image_channels_first", perm=[0, 3, 1, 2])
        x = self.emit("Div", [x, self.constant("image_scale", 255)], "image_scaled")
        x = self.emit("Sub", [x, self.constant("image_mean", np.reshape(mean, (3, 1, 1)))], "image_centred")
        self.data = self.emit("Div", [x, self.constant("image_std", np.reshape(std, (3, 1, 1)))], "image_normalised")

    def add(self, node):
        op, name = node["op"], node["name"]
        if op == "null":
            if name != "data":
                self.constant(name, self.values[name])
            return
        inputs = [self._output(*link[:2]) for link in node["inputs"]]
        try:
            TRANSLATIONS.get(op, _unknown)(self, node, inputs)
        except NotImplementedError as error:
            raise InputError(f"the node {name!r} of type {op} cannot be translated to ONNX: {error}")

    def _output(self, at, number):
        name = self.nodes[at]["name"]
        return self.data if name == "data" else f"{name}_{number}" if number else name


def _convolution(graph, node, inputs):
    kernel = attribute(node, "kernel")
    graph.emit(
        "Conv",
        inputs,
        node["name"],
        kernel_shape=kernel,
        strides=attribute(node, "stride", (1, 1)),
        pads=attribute(node, "pad", (0, 0)) * 2,
        dilations=attribute(node, "dilate", (1, 1)),
        group=attribute(node, "num_group", 1),
    )


def _batch_norm(graph, node, inputs):
    if attribute(node, "axis", 1) != 1:
        raise NotImplementedError("its axis is not 1")
    graph.emit("BatchNormalization", inputs, node["name"], epsilon=float(attribute(node, "eps", 1e-3)))


def _activation(graph, node, inputs):
    kinds = {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh"}
    kind = attribute(node, "act_type", "relu")
    if kind not in kinds:
        raise NotImplementedError(f"act_type {kind}")
    graph.emit(kinds[kind], inputs, node["name"])


def _pooling(graph, node, inputs):
    kind = {"max": "Max", "avg": "Average"}.get(attribute(node, "pool_type", "max"))
    if kind is None:
        raise NotImplementedError("its pool_type is neither max nor avg")
    if attribute(node, "global_pool", False):
        graph.emit(f"Global{kind}Pool", inputs, node["name"])
        return
    convention = attribute(node, "pooling_convention", "valid")
    if convention not in ("valid", "full"):
        raise NotImplementedError(f"its pooling_convention is {convention}")
    ceil = convention == "full"
    more = {} if kind == "Max" else {"count_include_pad": int(attribute(node, "count_include_pad", True))}
    if ceil and kind == "Average":
        raise NotImplementedError("an average with pooling_convention full")
    graph.emit(
        f"{kind}Pool",
        inputs,
        node["name"],
        kernel_shape=attribute(node, "kernel"),
        strides=attribute(node, "stride", (1, 1)),
        pads=attribute(node, "pad", (0, 0)) * 2,
        ceil_mode=int(ceil),
        **more,
    )


def _fully_connected(graph, node, inputs):
    if not attribute(node, "flatten", True):
        raise NotImplementedError("its flatten is False")
    flat = graph.emit("Flatten", inputs[:1], node["name"] + "_flat")
    graph.emit("Gemm", [flat, *inputs[1:]], node["name"], transB=1)


def _l2_normalisation(graph, node, inputs):
    if attribute(node, "mode", "instance") != "instance":
        raise NotImplementedError("its mode is not instance")
    name = node["name"]
    axes = list(range(1, len(graph.shapes[name + "_output"])))
    squares = graph.emit("ReduceSumSquare", inputs, name + "_squares", axes=axes, keepdims=1)
    positive = graph.emit(
        "Add", [squares, graph.constant(name + "_epsilon", attribute(node, "eps", 1e-10))], name + "_positive"
    )
    graph.emit("Div", [*inputs, graph.emit("Sqrt", [positive], name + "_norm")], name)


def _clip(graph, node, inputs):
    bounds = [graph.constant(f"{node['name']}_{key}", attribute(node, key)) for key in ("a_min", "a_max")]
    graph.emit("Clip", [*inputs, *bounds], node["name"])


def _divided_by(graph, node, inputs):
    graph.emit("Div", [graph.constant(node["name"] + "_scalar", attribute(node, "scalar")), *inputs], node["name"])


def _concat(graph, node, inputs):
    graph.emit("Concat", inputs, node["name"], axis=attribute(node, "dim", 1))


def _split(graph, node, inputs):
    count = attribute(node, "num_outputs")
    if attribute(node, "squeeze_axis", False):
        raise NotImplementedError("squeeze_axis")
    names = [node["name"], *(f"{node['name']}_{number}" for number in range(1, count))]
    graph.emit("Split", inputs, names, axis=attribute(node, "axis", 1))


def _reshape(graph, node, inputs):
    """To the shape that MXNet has inferred, with a free batch size."""
    if graph.dynamic_size:
        raise NotImplementedError("it depends on height and width")
    shape = graph.shapes[node["name"] + "_output"]
    graph.emit("Reshape", [*inputs, graph.constant(node["name"] + "_shape", (0, *shape[1:]), np.int64)], node["name"])


def _swap_axes(graph, node, inputs):
    order = list(range(len(graph.shapes[node["name"] + "_output"])))
    one, two = attribute(node, "dim1", 0), attribute(node, "dim2", 0)
    order[one], order[two] = order[two], order[one]
    graph.emit("Transpose", inputs, node["name"], perm=order)


def _pad(graph, node, inputs):
    if attribute(node, "mode") != "constant" or attribute(node, "constant_value", 0):
        raise NotImplementedError("it does not pad with zeros")
    width = attribute(node, "pad_width")
    pads = graph.constant(f"{node['name']}_width", [*width[::2], *width[1::2]], np.int64)
    graph.emit("Pad", [*inputs, pads], node["name"])


def _unknown(graph, node, inputs):
    raise NotImplementedError("no translation of this type")


def _plainly(op):
    """An operator that is the same in ONNX."""
    return lambda graph, node, inputs: graph.emit(op, inputs, node["name"])


TRANSLATIONS = {
    "Convolution": _convolution,
    "BatchNorm": _batch_norm,
    "Activation": _activation,
    "relu": _activation,
    "Pooling": _pooling,
    "FullyConnected": _fully_connected,
    "Flatten": _plainly("Flatten"),
    "L2Normalization": _l2_normalisation,
    "clip": _clip,
    "broadcast_power": _plainly("Pow"),
    "_rdiv_scalar": _divided_by,
    "Concat": _concat,
    "add_n": _plainly("Sum"),
    "elemwise_add": _plainly("Add"),
    "broadcast_add": _plainly("Add"),
    "broadcast_mul": _plainly("Mul"),
    "SliceChannel": _split,
    "Reshape": _reshape,
    "SwapAxis": _swap_axes,
    "Pad": _pad,
    "Dropout": _plainly("Identity"),
}


def _shapes(symbol, size):
    """{name of an output: its shape} of all nodes, for one image."""
    inner = symbol.get_internals()
    _, shapes, _ = inner.infer_shape(data=(1, 3, size[1], size[0]))
    return dict(zip(inner.list_outputs(), shapes))
