"""Names of parameters in the files of other programs, translated to those of the backbones here.

Which networks compute the same was checked with those programs themselves, in tests/network/test_peers.py. Values are
changed in two cases, without an effect on a network's output: imgclsmob's resnet50 and seresnet50 have no biases in
their 1 x 1 convolutions, as Gluon's do, which are set to 0; its bninception has biases before each batch norm, which
are subtracted from the running means.
"""

import re
from collections import namedtuple
from functools import partial

from cgd.network.model import HEAD_PREFIX
from cgd.system.environment import mx

# A network of osmr/imgclsmob ("gluoncv2"), and how its names are translated to those of the backbone here.
#   mark : a name that only files of this network have
#   stages : how many there are; other numbers in a name are not translated
#   place : the position of a stage's unit, "features.STAGE.UNIT.", in the backbone; stages count from 1
#   parts : what the other parts of a name are replaced by, in this order
Network = namedtuple("Network", "mark, stages, place, parts")

RESNET = Network(
    "features.1.0.body.conv1.conv.weight",
    4,
    lambda stage, unit: f"{stage + 3}.{unit}.",
    {
        "features.0.conv.": "",
        "body.conv1.0.": "body.0.",
        "body.conv1.1.": "body.1.",
        "body.conv2.0.": "body.3.",
        "body.conv2.1.": "body.4.",
        "body.conv3.0.": "body.6.",
        "body.conv3.1.": "body.7.",
        "identity_conv.": "downsample.",
        "se.conv": "weigh.",
    },
)
BN_INCEPTION = Network(
    "features.1.0.branches.0.conv.weight",
    3,
    lambda stage, unit: f"{(0, 5, 7, 12)[stage] + unit}.",
    {
        "features.0.conv1.": "0.",
        "features.0.conv2.conv1.": "2.",
        "features.0.conv2.conv2.": "3.",
        "branches.0.0.": "ways.0.0.0.",
        "branches.0.1.": "ways.0.0.1.",
        "branches.3.conv.": "ways.3.1.",
        "branches.": "ways.",
        "conv1.": "0.",
        "conv2.": "1.",
        "conv3.": "2.",
    },
)
SHUFFLENET_V2 = Network(
    "features.1.0.compress_conv1.weight",
    3,
    lambda stage, unit: f"{(0, 2, 6, 14)[stage] + unit}.",
    {
        "features.0.conv.": "0.",
        "features.4.": "18.",
        "compress_conv1.": "convolved.0.0.",
        "compress_bn1.": "convolved.0.1.",
        "dw_conv2.": "convolved.1.",
        "dw_bn2.": "convolved.2.",
        "expand_conv3.": "convolved.3.0.",
        "expand_bn3.": "convolved.3.1.",
        "dw_conv4.": "passing.0.",
        "dw_bn4.": "passing.1.",
        "expand_conv5.": "passing.2.0.",
        "expand_bn5.": "passing.2.1.",
    },
)


def translated(arrays):
    """{name: NDArray}, from a file of any program -> the same with the names of a backbone here.

    Names of an unknown kind are not changed. Raises ValueError if two arrays would get one name.
    """
    arrays = _from_torch(_from_checkpoint(arrays))
    for network in (RESNET, BN_INCEPTION, SHUFFLENET_V2):
        if network.mark in arrays:
            arrays = _renamed(arrays, partial(_from_imgclsmob, network))
            if network is RESNET:
                _add_biases(arrays)
            elif network is BN_INCEPTION:
                _remove_biases(arrays)
    return _renamed(arrays, lambda name: name[len("features.") :] if name.startswith("features.") else name)


def _renamed(arrays, rename):
    renamed = {rename(name): value for name, value in arrays.items()}
    if len(renamed) < len(arrays):
        raise ValueError("several arrays for one parameter, by their names")
    return renamed


def _from_checkpoint(arrays):
    """A checkpoint of MXNet begins its names with "arg:" or "aux:"; of CGD's own, only the backbone is kept."""
    arrays = _renamed(arrays, lambda name: name[4:] if name.startswith(("arg:", "aux:")) else name)
    return {name: value for name, value in arrays.items() if not name.startswith(HEAD_PREFIX)}


def _from_torch(arrays):
    """In PyTorch, gamma and beta of batch norm are called weight and bias."""

    def rename(name):
        block, dot, last = name.rpartition(".")
        if block + ".running_mean" in arrays:
            last = {"weight": "gamma", "bias": "beta"}.get(last, last)
        return block + dot + last

    return _renamed(arrays, rename)


def _from_imgclsmob(network, name):
    unit = rf"^features\.([1-{network.stages}])\.(\d)\."
    name = re.sub(unit, lambda match: network.place(*map(int, match.groups())), name)
    name = re.sub(r"\bconv\.(?=weight|bias)", "0.", re.sub(r"\bbn\.", "1.", name))
    for part, ours in network.parts.items():
        name = name.replace(part, ours)
    return name


def _add_biases(arrays):
    for name in [name for name in arrays if re.fullmatch(r"\d\.\d\.body\.[06]\.weight", name)]:
        bias = name[: -len("weight")] + "bias"
        arrays.setdefault(bias, mx.nd.zeros(arrays[name].shape[:1]))


def _remove_biases(arrays):
    """BN(x + bias) with a running mean m is BN(x) with m - bias; in training, the mean of a batch cancels the bias."""
    for name in [name for name in arrays if name.endswith(".0.bias")]:
        mean = name[: -len("0.bias")] + "1.running_mean"
        if mean in arrays and arrays[mean].shape == arrays[name].shape:
            arrays[mean] = arrays[mean] - arrays.pop(name)
