"""Faster forms of the network for oneDNN, which computes MXNet's operators on a CPU. The function is the same.

oneDNN keeps feature maps in a memory layout of its own. An operator that it lacks is computed by MXNet's own loop, in
MXNet's layout, and the maps are converted before it and after it.
"""

import json

from cgd.network.backbones import children
from cgd.network.descriptors import MAX_X, MIN_X, GeM
from cgd.system.environment import mx

nn = mx.gluon.nn
RELU6 = mx.gluon.model_zoo.vision.mobilenet.RELU6


def for_training(net):
    """Changes a `model.CGD` in place, whose shapes must be known, before it is hybridized. Parameters keep their names.

    ReLU6 is computed by oneDNN, and GeM with a fixed p = 3 without the power function.
    """
    for sequence in children(net.features, nn.HybridSequential):
        _replace_relu6(sequence)
    for gem in children(net.descriptors, GeM):
        gem.cube = gem.fixed_cube


def for_inference(symbol, values, ctx, size):
    """A SymbolBlock of a graph, images (N, 3, H, W) -> embeddings (N, dim), on `ctx`.

    symbol : the graph, with the input "data" · values : {name: NDArray}, all its parameters · size : (W, H)

    On a CPU batch norm, ReLU, ReLU6 and sums are fused into the convolutions, and GeM with p = 3 takes no powers.
    """
    if ctx.device_type != "cpu":
        return _block(symbol, values, ctx)
    symbol = _with_cubes(symbol, values)
    image = mx.nd.zeros((1, 3, size[1], size[0]))
    fused = _block(symbol, values, ctx, backend="MKLDNN")
    try:
        fused(image).wait_to_read()
        return fused
    except mx.base.MXNetError:  # in SE-ResNet-50, MXNet mixes up the inputs of a convolution that it fuses with a sum
        return _block(symbol, values, ctx)


def _block(symbol, values, ctx, **flags):
    block = mx.gluon.SymbolBlock(symbol, mx.sym.var("data", dtype="float32"))
    for name, parameter in block.collect_params().items():
        parameter._load_init(values[name], ctx)
    block.hybridize(static_alloc=True, static_shape=True, **flags)
    return block


class BatchNormReLU6(nn.BatchNorm):
    """Batch norm and ReLU6 in training, of operators that oneDNN has; it has no ReLU6 with a gradient in MXNet 1.9.

    min(y, 6) = 6 - relu(6 - y), and 6 - y is batch norm with -gamma and 6 - beta. The second subtraction is a depthwise
    convolution of one pixel, with the weight -1 and the bias 6.
    """

    def __init__(self, norm, channels):
        super().__init__(in_channels=channels, prefix=norm.prefix, params=norm.params)
        self._kwargs, self.channels = norm._kwargs, channels

    def hybrid_forward(self, F, x, gamma, beta, running_mean, running_var):
        below = F.BatchNorm(x, -gamma, 6 - beta, running_mean, running_var, name="fwd", **self._kwargs)
        below = F.Activation(below, act_type="relu")
        ones = F.BlockGrad(F.ones_like(gamma))
        depthwise = dict(kernel=(1, 1), num_filter=self.channels, num_group=self.channels)
        x = F.Convolution(below, F.reshape(-ones, (-1, 1, 1, 1)), 6 * ones, **depthwise)
        return F.Activation(x, act_type="relu")


def _replace_relu6(sequence):
    """Replaces the batch norm and the ReLU6 after a convolution by a `BatchNormReLU6`.

    Not where the convolution has, say, 24 input channels: oneDNN's kernels for AVX-512 take multiples of 16, or images.
    It then uses another layout, and no fast kernel has a gradient in one layout for a map in the other.
    """
    names = list(sequence._children)
    for first, second, third in zip(names, names[1:], names[2:]):
        blocks = [sequence._children.get(name) for name in (first, second, third)]
        if all(isinstance(block, kind) for block, kind in zip(blocks, (nn.Conv2D, nn.BatchNorm, RELU6))):
            convolution, norm, _ = blocks
            channels, inputs = convolution.weight.shape[:2]
            if convolution._kwargs["num_group"] > 1 or inputs % 16 == 0 or inputs == 3:
                sequence._children[second] = BatchNormReLU6(norm, channels)
                sequence._children[third] = nn.HybridLambda(lambda F, x: x)  # names of parameters count the blocks


def _with_cubes(symbol, values):
    """The graph with x * x * x instead of the power in each GeM whose p is 3 (see GeM.hybrid_forward)."""
    graph = json.loads(symbol.tojson())
    nodes = graph["nodes"]
    for power in list(nodes):
        if power["op"] != "broadcast_power":
            continue
        clip, p = (nodes[link[0]] for link in power["inputs"])
        if clip["op"] != "clip" or p["op"] != "null" or values[p["name"]].asnumpy().tolist() != [3.0]:
            continue
        _make_cube(nodes, clip, power)
    return mx.sym.load_json(json.dumps(graph))


def _make_cube(nodes, clip, power):
    """Changes the nodes of a GeM. The order of nodes does not matter, so new ones are appended."""
    name, clipped, pooling = power["name"], nodes.index(clip), _only_user(nodes, nodes.index(power))
    if pooling is None or _only_user(nodes, clipped) is None or nodes[pooling]["op"] != "Pooling":
        return
    root = _only_user(nodes, pooling)
    if root is None:
        return
    bounds = {"a_min": str(MIN_X**3), "a_max": str(MAX_X**3)}
    nodes.append({"op": "square", "name": name + "_square", "inputs": [[clipped, 0, 0]]})
    nodes.append({"op": "clip", "name": name + "_clip", "attrs": bounds, "inputs": [[pooling, 0, 0]]})
    clip.update(op="Activation", attrs={"act_type": "relu"})
    power.update(op="elemwise_mul", inputs=[[len(nodes) - 2, 0, 0], [clipped, 0, 0]])
    nodes[root]["inputs"][0] = [len(nodes) - 1, 0, 0]


def _only_user(nodes, index):
    """The index of the only node that has this one as an input; None if there are several."""
    users = [at for at, node in enumerate(nodes) for link in node["inputs"] if link[0] == index]
    return users[0] if len(users) == 1 else None
