"""Faster forms of the network for oneDNN, which computes MXNet's operators on a CPU. The function is the same.

oneDNN keeps feature maps in a memory layout of its own. An operator that it lacks is computed by MXNet's own loop, in
MXNet's layout, and the maps are converted before it and after it.
"""

import json
from contextlib import suppress

import numpy as np

from cgd.network import graphs
from cgd.network.backbones import children
from cgd.network.descriptors import GeM
from cgd.system.environment import large_enough, mx
from cgd.system.errors import InputError, say

nn = mx.gluon.nn
BACKEND = "MKLDNN"  # oneDNN's name in MXNet 1.9
# Of the values of an embedding, relative to their root mean square, 1 / sqrt(dim). Rounding alone gives up to 4e-5 in
# DenseNet-121 with random weights; a graph whose inputs are mixed up gives about 1.
TOLERANCE = 1e-4
RELU6 = mx.gluon.model_zoo.vision.mobilenet.RELU6


def for_training(net):
    """Changes a `model.CGD` in place, whose shapes must be known, before it is hybridized. Parameters keep their names.

    ReLU6 is computed by oneDNN, wholly or in part, and GeM with a fixed p of 3 without the power function. One
    difference: oneDNN's ReLU of NaN is 0, so a parameter that is NaN need not show in the loss. It shows in the
    gradients.
    """
    for sequence in children(net.features, nn.HybridSequential):
        _replace_relu6(sequence)
    for gem in children(net.descriptors, GeM):
        gem.fast = True


def for_inference(symbol, values, ctx, size, dtype="float32"):
    """A SymbolBlock of a graph, images (N, 3, H, W) -> embeddings (N, dim) float32, on `ctx`.

    symbol : the graph, with the input "data" · values : {name: NDArray}, all its parameters · size : (W, H)
        In float32 it may have further outputs, which the embeddings are computed from: the block returns them all
    dtype : "float32"; "bfloat16", on a CPU, for the convolutions; or "int8" for a graph of cgd.quantize

    On a CPU batch norm, ReLU, ReLU6 and sums are fused into the convolutions, and GeM with p = 3 takes no powers.

    Raises InputError if this CPU, or MXNet, cannot run the graph in bfloat16.
    """
    if ctx.device_type != "cpu" or dtype == "int8":
        return _block(symbol, values, ctx)
    symbol, values, flags = fastest(symbol, values, size)
    if dtype == "bfloat16":
        return _in_bfloat16(symbol, values, ctx, size, flags)
    return _block(symbol, values, ctx, **flags)


def fastest(symbol, values, size):
    """The fastest form of a graph that MXNet can run on a CPU: the graph, its parameters, and flags of `hybridize`.

    The embeddings of two images of noise decide: a form whose embeddings differ is not taken. If none is left but the
    graph itself, a line on stderr says so, except for squeeze-and-excitation networks, of which this is known.
    """
    noise = _noise(size)
    with large_enough(size):
        expected = _embeddings(_block(symbol, values, mx.cpu())(noise))
    folded, folded_values = graphs.fold_batch_norm(symbol, values)
    for graph in (graphs.with_fast_gem(folded, folded_values), folded):
        form = (graph, folded_values, {"backend": BACKEND})
        with suppress(mx.base.MXNetError):  # in SE-ResNet-50, the inputs of a convolution fused with a sum are mixed up
            found = _embeddings(_block(*form[:2], mx.cpu(), **form[2])(noise))
            if np.abs(found - expected).max() * expected.shape[1] ** 0.5 < TOLERANCE:
                return form
    if all(node["op"] != "broadcast_mul" for node in json.loads(symbol.tojson())["nodes"]):
        say("note: oneDNN's fused form of this network gives other embeddings; the slower, plain form is used")
    return symbol, values, {}


def _embeddings(outputs):
    """The first of a graph's outputs, in numpy."""
    return (outputs[0] if isinstance(outputs, list) else outputs).asnumpy()


def _noise(size):
    """Two images of noise, (2, 3, H, W)."""
    return mx.nd.array(np.random.RandomState(0).randn(2, 3, size[1], size[0]))


def _block(symbol, values, ctx, **flags):
    block = mx.gluon.SymbolBlock(symbol, mx.sym.var("data", dtype="float32"))
    for name, parameter in block.collect_params().items():
        parameter.grad_req = "null"  # otherwise gradients take as much memory as the weights
        parameter._load_init(values[name], ctx, cast_dtype=True, dtype_source="saved")
    block.hybridize(static_alloc=True, static_shape=True, **flags)
    return block


def _in_bfloat16(symbol, values, ctx, size, flags):
    """A block of the graph with its backbone in bfloat16. The descriptors stay in float32.

    Their sums need the precision, and MXNet has no power mean in bfloat16.
    """
    from mxnet.contrib import amp  # cgd.system.environment must have imported MXNet before

    try:
        symbol, arguments, states = amp.convert_model(
            symbol,
            *graphs.arguments_and_states(symbol, values),
            target_dtype="bfloat16",
            target_dtype_ops=[*amp.lists.symbol_bf16.BF16_FUNCS, "Concat"],  # its inputs must have one type
            excluded_sym_names=graphs.after_pooling(symbol),
            cast_optional_params=True,
        )
        block = _block(symbol, dict(arguments, **states), ctx, **flags)
        block(_noise(size)).wait_to_read()
    except mx.base.MXNetError:
        with suppress(mx.base.MXNetError):
            mx.nd.waitall()  # otherwise the error would be raised once more, elsewhere
        raise InputError("--dtype bfloat16: MXNet cannot run this network in bfloat16 on this CPU; use --dtype float32")
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
        return _relu6_from_below(F, below, gamma, self.channels)


class FrozenConvolution(mx.gluon.HybridBlock):
    """A convolution with the frozen batch norm after it, as one convolution; also the ReLU6 of a `BatchNormReLU6`.

    Batch norm multiplies by gamma / sqrt(variance + eps) and shifts, and frozen it does so with constants. Multiplied
    into the weights, they spare a pass over the feature maps forward and another one backward. What is trained are the
    convolution's own weights and bias.
    """

    def __init__(self, convolution, norm):
        super().__init__()
        for block in (convolution, norm):
            self.params.update(block.params)
            for name, parameter in block._reg_params.items():
                setattr(self, name, parameter)
        self.convolution_options = dict(convolution._kwargs, no_bias=False)
        self.eps, self.fix_gamma = norm._kwargs["eps"], norm._kwargs["fix_gamma"]
        self.relu6 = isinstance(norm, BatchNormReLU6)

    def hybrid_forward(self, F, x, weight, gamma, beta, running_mean, running_var, bias=0):
        # Constants behind BlockGrad: otherwise, with static memory, MXNet 1.9 leaves the gradient of a sum of one and
        # the bias unwritten.
        factor = F.BlockGrad((F.ones_like(gamma) if self.fix_gamma else gamma) / F.sqrt(running_var + self.eps))
        shift = F.BlockGrad(beta - running_mean * factor) + bias * factor
        if self.relu6:
            factor, shift = -factor, 6 - shift
        weight = F.broadcast_mul(weight, F.reshape(factor, (-1, 1, 1, 1)))
        x = F.Convolution(x, weight, shift, **self.convolution_options)
        return _relu6_from_below(F, x, gamma, self.convolution_options["num_filter"]) if self.relu6 else x


def fold_frozen_batch_norm(net):
    """Replaces each convolution and the frozen batch norm after it by a `FrozenConvolution`, in a `model.CGD`.

    Only after convolutions of one pixel, of single channels, or of an image's three: others, as those of ResNet-18,
    have so many weights that to multiply them takes longer than the passes over the maps. Batch norms outside of a
    HybridSequential stay, such as those of resnet50_v1b, and those before a convolution. After this, weights can be
    loaded by the parameters' own names only.
    """
    for sequence in (
        block for block in children(net.features, nn.HybridSequential) if type(block) is nn.HybridSequential
    ):
        names = list(sequence._children)
        for first, second in zip(names, names[1:]):
            convolution, norm = sequence._children[first], sequence._children[second]
            if _few_weights(convolution) and isinstance(norm, nn.BatchNorm) and norm._kwargs["axis"] == 1:
                sequence._children[first] = FrozenConvolution(convolution, norm)
                sequence._children[second] = nn.HybridLambda(lambda F, x: x)
    net._clear_cached_op()


def _few_weights(block):
    """Whether it is a convolution, without an activation, that has few weights for the size of its maps."""
    if not isinstance(block, nn.Conv2D) or block.act is not None:
        return False
    return block._kwargs["kernel"] == (1, 1) or block.weight.shape[1] <= 3


def _relu6_from_below(F, below, per_channel, channels):
    """ReLU6 of y from 6 - y, (N, C, H, W). per_channel : any array of shape (C,)"""
    ones = F.BlockGrad(F.ones_like(per_channel))
    depthwise = dict(kernel=(1, 1), num_filter=channels, num_group=channels)
    below = F.Activation(below, act_type="relu")
    x = F.Convolution(below, F.reshape(-ones, (-1, 1, 1, 1)), 6 * ones, **depthwise)
    return F.Activation(x, act_type="relu")


def clipped_relu(F, x):
    """ReLU6 with its gradient, faster than MXNet's `clip` alone.

    `clip` branches on each value. Where oneDNN's ReLU has removed those below 0, almost none takes a branch, which the
    processor predicts.
    """
    return F.clip(F.Activation(x, act_type="relu"), 0, 6)


def _replace_relu6(sequence):
    """Replaces the batch norm and the ReLU6 after a convolution by a `BatchNormReLU6`, or else the ReLU6 alone.

    Alone where the convolution has, say, 24 input channels: oneDNN's kernels for AVX-512 take multiples of 16, or
    images. It then uses another layout, and no fast kernel has a gradient in one layout for a map in the other. `clip`
    does no harm there: its gradient is in MXNet's layout, which is converted to that of the map.
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
            else:
                sequence._children[third] = nn.HybridLambda(clipped_relu)
