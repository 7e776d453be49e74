"""Queries and changes of a symbol graph. A graph comes with {name: NDArray}, all its parameters."""

import ast
import json

import numpy as np

from cgd.network.descriptors import GeM
from cgd.system.environment import mx


def fold_batch_norm(symbol, values):
    """Folds each batch norm that follows a convolution into it. Returns the new graph and its parameters.

    A convolution whose output or weights other nodes use, too, keeps its batch norm. The new weights are computed in
    float64.
    """
    graph, values = json.loads(symbol.tojson()), dict(values)
    nodes = graph["nodes"]
    users = [0] * len(nodes)
    for link in [*_links(nodes), *graph["heads"]]:
        users[link[0]] += 1
    for at, node in enumerate(nodes):
        of_channels = node["op"] == "BatchNorm" and attribute(node, "axis", 1) == 1
        convolution = first_input(nodes, node, "Convolution") if of_channels else None
        if convolution:
            source, weight = node["inputs"][0][0], convolution["inputs"][1][0]
            if users[source] == users[weight] == 1:
                _fold(nodes, source, at, values)
    symbol = _symbol(graph)
    names = set(symbol.list_inputs()) - {"data"}
    return symbol, {name: value for name, value in values.items() if name in names}


def _fold(nodes, source, at, values):
    """Folds the batch norm at one index into the convolution at another."""
    convolution, norm = nodes[source], nodes[at]
    gamma, beta, mean, variance = (_value(nodes, link, values) for link in norm["inputs"][1:])
    if attribute(norm, "fix_gamma", True):
        gamma = np.ones_like(gamma)
    factor = gamma / np.sqrt(variance + attribute(norm, "eps", 1e-3))
    weight, *bias = convolution["inputs"][1:]
    old = _value(nodes, bias[0], values) if bias else 0
    kernels = values[nodes[weight[0]]["name"]].asnumpy()
    kernels *= factor[:, None, None, None]  # each product in float64
    values[nodes[weight[0]]["name"]] = mx.nd.array(kernels)
    name = norm["name"] + "_folded_bias"
    values[name] = mx.nd.array(beta + (old - mean) * factor)
    # The convolution takes the place of the batch norm, and its bias that of the convolution: all links stay valid.
    attributes = dict(convolution["attrs"], no_bias="False")
    inputs = [*convolution["inputs"][:2], [source, 0, 0]]
    nodes[at] = dict(convolution, name=norm["name"], attrs=attributes, inputs=inputs)
    nodes[source] = {"op": "null", "name": name, "inputs": []}


def gem_sources(nodes, node):
    """{"map": link, "p": link} of the GeM whose last node this is; None if it is another node."""
    pooling = first_input(nodes, node, "Pooling") if node["op"] == "broadcast_power" else None
    power = first_input(nodes, pooling, "broadcast_power")
    clip = first_input(nodes, power, "clip")
    return {"map": clip["inputs"][0], "p": power["inputs"][1]} if clip else None


def with_fast_gem(symbol, values):
    """The graph with `GeM.of_cubes` instead of each GeM whose p is 3."""
    graph = json.loads(symbol.tojson())
    nodes = graph["nodes"]
    of_cubes = json.loads(GeM.of_cubes(mx.sym, mx.sym.var("map"), mx.sym.var("p")).tojson())
    for at, root in enumerate(list(nodes)):
        sources = gem_sources(nodes, root)
        if sources and _value(nodes, sources["p"], values).tolist() == [3.0]:
            new = _appended(nodes, of_cubes, sources, root["name"])
            for link in _links(nodes):
                if link[0] == at:
                    link[0] = new
    return _symbol(graph)


def after_pooling(symbol):
    """The names of the nodes of the global descriptors, and of all that follow from them.

    Not those of a global pooling with a convolution after it, as in a squeeze-and-excitation block.

    symbol : a graph as MXNet writes it, where each node follows its inputs
    """
    nodes = json.loads(symbol.tojson())["nodes"]
    before_convolutions = set()
    for at in reversed(range(len(nodes))):
        if nodes[at]["op"] == "Convolution" or at in before_convolutions:
            before_convolutions.update(link[0] for link in nodes[at]["inputs"])
    after = set()
    for at, node in enumerate(nodes):
        pooled = node["op"] == "Pooling" and attribute(node, "global_pool", False) and at not in before_convolutions
        if pooled or any(link[0] in after for link in node["inputs"]):
            after.add(at)
    return [nodes[at]["name"] for at in after]


def is_int8(symbol):
    """Whether a graph is one that MXNet has quantised, at least in part."""
    return any(map(is_quantized, json.loads(symbol.tojson())["nodes"]))


def is_quantized(node):
    """Whether a node quantises its input, or computes in int8."""
    quantized = node.get("attrs", {}).get("quantized") in ("true", "True", "1")
    return quantized or node["op"].startswith("_contrib_quantize")


def pooled_vectors(symbol):
    """Graphs of the inputs of the Dense layers, scaled to length 1: the global descriptors, in their order."""
    nodes, internals = json.loads(symbol.tojson())["nodes"], symbol.get_internals()
    sources = [nodes[node["inputs"][0][0]]["name"] for node in nodes if node["op"] == "FullyConnected"]
    return [mx.sym.L2Normalization(mx.sym.Flatten(internals[name + "_output"])) for name in sources]


def arguments_and_states(symbol, values):
    """The parameters of a graph, {name: NDArray}, as MXNet wants them: learned ones, and running statistics."""
    learned = {name: values[name] for name in symbol.list_arguments() if name != "data"}
    return learned, {name: values[name] for name in symbol.list_auxiliary_states()}


def with_fixed_gammas(symbol, values):
    """The parameters with gamma 1 where batch norm ignores it (`fix_gamma`), for programs that have no such flag."""
    nodes, values = json.loads(symbol.tojson())["nodes"], dict(values)
    for node in nodes:
        if node["op"] == "BatchNorm" and attribute(node, "fix_gamma", True):
            gamma = nodes[node["inputs"][1][0]]["name"]
            values[gamma] = mx.nd.ones_like(values[gamma])
    return values


def batch_norm_eps(symbol):
    """What the batch norms of a graph add to the variance, as text; "" without batch norm."""
    norms = [node for node in json.loads(symbol.tojson())["nodes"] if node["op"] == "BatchNorm"]
    return ", ".join(sorted({str(attribute(norm, "eps", 1e-3)) for norm in norms}))


def text_of(symbol):
    """The graph in JSON, for MXNet since 1.3: before 1.5 its pooling had no `layout`, and refuses even the default."""
    graph = json.loads(symbol.tojson())
    for node in graph["nodes"]:
        if node["op"] == "Pooling" and node["attrs"].get("layout") == "NCHW":
            del node["attrs"]["layout"]
    return json.dumps(graph, indent=1)


def attribute(node, name, default=None):
    """The value of a node's attribute, which MXNet stores as text. Raises NotImplementedError if there is none."""
    text = node.get("attrs", {}).get(name)
    if text is None:
        if default is None:
            raise NotImplementedError(f"no {name}")
        return default
    try:
        return {"true": True, "false": False}[text] if text in ("true", "false") else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def first_input(nodes, node, op):
    """The node that is the first input of `node`, if there is one of this type."""
    first = nodes[node["inputs"][0][0]] if node else {"op": None}
    return first if first["op"] == op else None


def _symbol(graph):
    graph["arg_nodes"] = [at for at, node in enumerate(graph["nodes"]) if node["op"] == "null"]
    return mx.sym.load_json(json.dumps(graph))


def _links(nodes):
    return [link for node in nodes for link in node["inputs"]]


def _value(nodes, link, values):
    """The parameter that a link leads to, in float64; NaN if it is not a parameter."""
    value = values.get(nodes[link[0]]["name"])
    return np.array(np.nan) if value is None else value.asnumpy().astype(np.float64)


def _appended(nodes, graph, sources, name):
    """Appends the nodes of a graph. Returns the index of its head.

    sources : {variable of the graph: link to what it becomes} · name : the prefix of the new nodes' names

    The order of nodes does not matter to MXNet, nor do nodes that nothing uses.
    """
    first = len(nodes)
    for node in graph["nodes"]:
        links = [sources.get(graph["nodes"][at]["name"], [first + at, *rest]) for at, *rest in node["inputs"]]
        nodes.append(dict(node, name=f"{name}_{node['name']}", inputs=[list(link) for link in links]))
    return first + graph["heads"][0][0]
