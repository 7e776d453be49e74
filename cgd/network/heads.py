"""What follows the last feature map, in numpy, for each place of the map apart.

A global descriptor is a sum over the places of the map, a Dense layer is linear, and L2 normalisation is a scale. With
each scale at the value it has for the image, the embedding is a sum of one vector for each place and descriptor, and of
one for the biases of the Dense layers.
"""

import json

import numpy as np

from cgd.network import graphs
from cgd.network.descriptors import MAX_X, MIN_X
from cgd.system.errors import InputError

BIAS = "bias"


def spoc(places):
    """What each place adds to SPoC, x / L: (L, C) -> (L, C)."""
    return places / len(places)


def mac(places):
    """What each place adds to MAC: the maximum of a channel at the place that has it, 0 elsewhere: (L, C) -> (L, C).

    Places that tie for the maximum, as where ReLU6 is saturated, share it equally.
    """
    at_maximum = (places == places.max(axis=0)).astype(places.dtype)
    return places * at_maximum / at_maximum.sum(axis=0)


def gem(places, p):
    """What each place adds to GeM g = (mean x^p)^(1/p), which is x^p / (L g^(p - 1)): (L, C) -> (L, C)."""
    x = np.clip(places, MIN_X, MAX_X)
    greatest = x.max(axis=0)  # x^p itself may underflow
    g = greatest * np.mean((x / greatest) ** p, axis=0) ** (1 / p)
    return x * (x / g) ** (p - 1) / len(x)


class Head:
    """The last feature map of a checkpoint's graph, and what follows it. Reads the graph, not the description.

    map_name : the name of the output of the graph that is the map
    """

    def __init__(self, checkpoint):
        """Raises InputError for a checkpoint in int8, and for a graph with other operators than CGD's after its map."""
        if checkpoint.description["dtype"] != "float32":
            raise InputError(
                f"{checkpoint.prefix}: is in int8, whose graph has no separate global descriptors; give the checkpoint "
                "that it was made from"
            )
        graph = json.loads(checkpoint.symbol.tojson())
        self.file, self.nodes, self.last = checkpoint.prefix + "-symbol.json", graph["nodes"], graph["heads"][0][0]
        self.parameters = checkpoint.arg_params
        maps = self._maps(self.last)
        if len(maps) != 1:
            raise InputError(f"{self.file}: its global descriptors are of {len(maps)} feature maps; expected one")
        (at,) = maps
        self.map_name = self.nodes[at]["name"] + ("" if self.nodes[at]["op"] == "null" else "_output")

    def __call__(self, feature_map):
        """The embedding (dim,) of a map (C, h, w) as a sum: {letter: (h, w, dim), "bias": (dim,)}, float32.

        The letters are those of the descriptors: S, M, G. Architecture B, too, has a term for each.
        """
        channels, *shape = feature_map.shape
        terms = self._terms(self.last, feature_map.reshape(channels, -1).T)
        bias = terms.pop(BIAS, np.zeros((1, 1), np.float32))
        terms = {letter: vectors.reshape(*shape, -1) for letter, vectors in terms.items()}
        dim = next(iter(terms.values())).shape[-1]
        return dict(terms, **{BIAS: np.broadcast_to(bias[0], (dim,))})

    def _maps(self, at):
        """The indices of the feature maps that a node is computed from."""
        found = self._descriptor(at)
        return {found[1]} if found else set().union(*map(self._maps, self._inputs(at)))

    def _descriptor(self, at):
        """(letter, index of the feature map, index of p or None) if a node is a global descriptor, else None."""
        node = self.nodes[at]
        gem = graphs.gem_sources(self.nodes, node)
        if gem:
            return "G", gem["map"][0], gem["p"][0]
        if node["op"] == "Pooling" and graphs.attribute(node, "global_pool", False):
            letter = {"avg": "S", "max": "M"}.get(node["attrs"]["pool_type"])
            if letter:
                return letter, node["inputs"][0][0], None
        return None

    def _inputs(self, at):
        """The indices of a node's inputs without its parameters."""
        node = self.nodes[at]
        if node["op"] not in self._OPERATORS:
            what = f"{node['name']} ({node['op']})"
            raise InputError(f"{self.file}: {what} after the last feature map cannot be explained; expected CGD's head")
        links = node["inputs"][:1] if node["op"] == "FullyConnected" else node["inputs"]
        return [link[0] for link in links]

    def _terms(self, at, places):
        """The value of a node as a sum: {letter: (L, n), BIAS: (1, n)}, the latter after a Dense layer only."""
        found = self._descriptor(at)
        if not found:
            inputs = [self._terms(source, places) for source in self._inputs(at)]
            return self._OPERATORS[self.nodes[at]["op"]](self, self.nodes[at], *inputs)
        letter, _, p = found
        if letter == "G":
            return {letter: gem(places, self._parameter(p)[0])}
        return {letter: {"S": spoc, "M": mac}[letter](places)}

    def _parameter(self, at):
        return self.parameters[self.nodes[at]["name"]].asnumpy()

    def _dense(self, node, terms):
        weight, *bias = (self._parameter(link[0]) for link in node["inputs"][1:])
        terms = {name: values @ weight.T for name, values in terms.items()}
        return _sum(terms, {BIAS: bias[0][None]}) if bias else terms

    def _unit(self, node, terms):
        square = np.square(total(terms)).sum() + graphs.attribute(node, "eps", 1e-10)
        return {name: values / np.sqrt(square) for name, values in terms.items()}

    def _concat(self, node, *inputs):
        widths = [next(iter(terms.values())).shape[1] for terms in inputs]
        ends, joined = np.cumsum(widths), {}
        for terms, width, end in zip(inputs, widths, ends):
            for name, values in terms.items():
                joined.setdefault(name, np.zeros((len(values), ends[-1]), values.dtype))[:, end - width : end] = values
        return joined

    def _add(self, node, *inputs):
        return _sum(*inputs)

    _OPERATORS = {
        "FullyConnected": _dense,
        "L2Normalization": _unit,
        "Concat": _concat,
        "add_n": _add,
        "elemwise_add": _add,
        "Flatten": _add,
    }


def total(terms):
    """The sum of terms {name: (..., n)} over their places and names: (n,)."""
    return sum(values.reshape(-1, values.shape[-1]).sum(axis=0) for values in terms.values())


def _sum(*inputs):
    """Adds terms by name."""
    names = dict.fromkeys(name for terms in inputs for name in terms)
    return {name: sum(terms[name] for terms in inputs if name in terms) for name in names}
