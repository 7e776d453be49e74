"""Backbones: the convolutional part of a network, whose last feature map the global descriptors pool.

Any network of Gluon's model zoo, the three networks of the paper's comparison that the zoo lacks, and resnet50_v1b.
"""

from cgd.system.environment import mx
from cgd.system.errors import InputError

nn, vision = mx.gluon.nn, mx.gluon.model_zoo.vision

# The first of these blocks ends the convolutional part of a network of Gluon's zoo.
END_OF_FEATURE_MAP = (nn.GlobalAvgPool2D, nn.AvgPool2D, nn.Flatten, nn.Dense, nn.Dropout)

# Prefixes of parameter names. They are fixed because Gluon's default prefixes count the networks built so far, and
# parameters could not be loaded by name. ResNets use the prefix of the released graph.
RESNET_PREFIX, OTHER_PREFIX = "resnetv10_", "backbone0_"


def convolutions(name, last_stride=1):
    """The convolutional part of a network, a HybridSequential: (N, 3, H, W) -> (N, C, h, w).

    name : a network of Gluon's zoo, or one of CUSTOM_BACKBONES
    last_stride : stride of the last stage of a ResNet or of one of CUSTOM_BACKBONES. 2 is the published network; 1, as
        in the released graph, doubles the height and width of the feature map. Ignored for other networks.

    Raises InputError if the name is unknown.
    """
    if name in CUSTOM_BACKBONES:
        return CUSTOM_BACKBONES[name](last_stride)
    if name not in names():  # which the zoo finds in capitals, too
        raise InputError(f"backbone {name!r}: expected one of {' '.join(names())}")
    prefix = RESNET_PREFIX if name.startswith("resnet") else OTHER_PREFIX
    zoo = vision.get_model(name, prefix=prefix)
    return _until_pooling(zoo.features, remove_stride=name.startswith("resnet") and last_stride == 1)


def resnet50_v1b(last_stride):
    """ResNet-50 with the stride of a block in its 3 x 3 convolution and without biases: that of torchvision and timm.

    Gluon's resnet50_v1 has the stride in the first 1 x 1 convolution, so the weights of one compute something else in
    the other. The names in saved parameters are those of GluonCV's network of this name.
    """
    body = nn.HybridSequential(prefix=OTHER_PREFIX)
    with body.name_scope():
        blocks = {
            "conv1": nn.Conv2D(64, 7, 2, 3, use_bias=False),
            "bn1": nn.BatchNorm(),
            "relu": nn.Activation("relu"),
            "maxpool": nn.MaxPool2D(3, 2, 1),
        }
        for stage, (channels, units) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), start=1):
            layer = blocks[f"layer{stage}"] = nn.HybridSequential(prefix=f"stage{stage}_")
            with layer.name_scope():
                layer.add(BottleneckV1b(channels, 1 if stage == 1 else 2, shortcut=True))
                layer.add(*[BottleneckV1b(channels) for _ in range(units - 1)])
        for name, block in blocks.items():
            body.register_child(block, name)
    if last_stride == 1:
        _remove_last_stride(body)
    return body


def se_resnet50(last_stride):
    """SE-ResNet-50 (Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018)."""
    zoo = vision.ResNetV1(SEBottleneck, [3, 4, 6, 3], [64, 256, 512, 1024, 2048], prefix=OTHER_PREFIX)
    return _until_pooling(zoo.features, remove_stride=last_stride == 1)


def bn_inception(last_stride):
    """BN-Inception (Ioffe and Szegedy, "Batch Normalization", 2015, Figure 5, as released).

    Its max pooling with stride 2 is padded at the end only, as in imgclsmob's network.
    """
    body = nn.HybridSequential(prefix=OTHER_PREFIX)
    with body.name_scope():
        body.add(_conv(64, 7, 2), nn.MaxPool2D(3, 2, ceil_mode=True))
        body.add(_conv(64, 1), _conv(192, 3), nn.MaxPool2D(3, 2, ceil_mode=True))
        # branches: 1 x 1; 1 x 1, 3 x 3; 1 x 1, 3 x 3, 3 x 3; pooling, 1 x 1
        body.add(Inception([64], [64, 64], [64, 96, 96], "avg", 32))
        body.add(Inception([64], [64, 96], [64, 96, 96], "avg", 64))
        body.add(Inception([], [128, 160], [64, 96, 96], "max", 0, stride=2))
        body.add(Inception([224], [64, 96], [96, 128, 128], "avg", 128))
        body.add(Inception([192], [96, 128], [96, 128, 128], "avg", 128))
        body.add(Inception([160], [128, 160], [128, 160, 160], "avg", 128))
        body.add(Inception([96], [128, 192], [160, 192, 192], "avg", 128))
        body.add(Inception([], [128, 192], [192, 256, 256], "max", 0, stride=last_stride))
        body.add(Inception([352], [192, 320], [160, 224, 224], "avg", 128))
        body.add(Inception([352], [192, 320], [192, 224, 224], "max", 128))
    return body


def shufflenet_v2(last_stride):
    """ShuffleNet V2 1x (Ma et al., "ShuffleNet V2: Practical Guidelines", ECCV 2018, Table 5).

    The table does not say how the max pooling is padded: here at the end only, as in imgclsmob's network.
    """
    body = nn.HybridSequential(prefix=OTHER_PREFIX)
    with body.name_scope():
        body.add(_conv(24, 3, 2), nn.MaxPool2D(3, 2, ceil_mode=True))
        in_channels = 24
        for channels, units, stride in ((116, 4, 2), (232, 8, 2), (464, 4, last_stride)):
            body.add(ShuffleDown(in_channels, channels, stride))
            for _ in range(units - 1):
                body.add(ShuffleUnit(channels))
            in_channels = channels
        body.add(_conv(1024, 1))
    return body


class BottleneckV1b(nn.HybridBlock):
    """Bottleneck with the stride in the 3 x 3 convolution: (N, C, H, W) -> (N, 4 channels, H / stride, W / stride).

    shortcut : whether a 1 x 1 convolution adapts the input that is added to the output
    """

    def __init__(self, channels, stride=1, shortcut=False, **kwargs):
        super().__init__(**kwargs)
        with self.name_scope():
            self.conv1, self.bn1 = nn.Conv2D(channels, 1, use_bias=False), nn.BatchNorm()
            self.conv2, self.bn2 = nn.Conv2D(channels, 3, stride, 1, use_bias=False), nn.BatchNorm()
            self.conv3, self.bn3 = nn.Conv2D(4 * channels, 1, use_bias=False), nn.BatchNorm()
            self.downsample = None
            if shortcut:
                self.downsample = nn.HybridSequential(prefix="down_")
                with self.downsample.name_scope():
                    self.downsample.add(nn.Conv2D(4 * channels, 1, stride, use_bias=False), nn.BatchNorm())

    def hybrid_forward(self, F, x):
        residual = self.downsample(x) if self.downsample else x
        x = F.Activation(self.bn1(self.conv1(x)), act_type="relu")
        x = F.Activation(self.bn2(self.conv2(x)), act_type="relu")
        return F.Activation(self.bn3(self.conv3(x)) + residual, act_type="relu")


class SEBottleneck(vision.BottleneckV1):
    """The zoo's bottleneck with a squeeze-and-excitation block: (N, C, H, W) -> (N, C', h, w)."""

    REDUCTION = 16

    def __init__(self, channels, *arguments, **kwargs):
        super().__init__(channels, *arguments, **kwargs)
        with self.name_scope():
            self.weigh = nn.HybridSequential(prefix="")
            self.weigh.add(nn.GlobalAvgPool2D(), nn.Conv2D(channels // self.REDUCTION, 1, activation="relu"))
            self.weigh.add(nn.Conv2D(channels, 1, activation="sigmoid"))

    def hybrid_forward(self, F, x):
        residual = self.downsample(x) if self.downsample else x
        x = self.body(x)
        return F.relu(F.broadcast_mul(x, self.weigh(x)) + residual)


class ShuffleUnit(nn.HybridBlock):
    """Unit with stride 1: half of the channels pass unchanged, the others through three convolutions; then shuffled.

    (N, C, H, W) -> (N, C, H, W).
    """

    def __init__(self, channels, **kwargs):
        super().__init__(**kwargs)
        with self.name_scope():
            self.convolved = _shuffle_branch(channels // 2, 1)

    def hybrid_forward(self, F, x):
        passing, convolved = F.split(x, num_outputs=2, axis=1)
        return _mixed(F, passing, self.convolved(convolved))


class ShuffleDown(nn.HybridBlock):
    """Downsampling unit: (N, in_channels, H, W) -> (N, channels, H / stride, W / stride).

    All channels pass through both branches.
    """

    def __init__(self, in_channels, channels, stride, **kwargs):
        super().__init__(**kwargs)
        with self.name_scope():
            self.passing = nn.HybridSequential(prefix="")
            self.passing.add(*_depthwise(in_channels, stride), _conv(channels // 2, 1))
            self.convolved = _shuffle_branch(channels // 2, stride)

    def hybrid_forward(self, F, x):
        return _mixed(F, self.passing(x), self.convolved(x))


class Inception(nn.HybridBlock):
    """Inception block: parallel branches, concatenated along the channels.

    one, two, three : channels of the convolutions of the branches 1 x 1; 1 x 1, 3 x 3; and 1 x 1, 3 x 3, 3 x 3
    pool : "avg" or "max", the 3 x 3 pooling of the last branch
    pooled : channels of the 1 x 1 convolution after the pooling; 0 for none
    stride : of the last convolution of each branch, and of the pooling; 2 with "max" only
    """

    def __init__(self, one, two, three, pool, pooled, stride=1, **kwargs):
        super().__init__(**kwargs)
        pooling = nn.AvgPool2D if pool == "avg" else nn.MaxPool2D
        with self.name_scope():
            self.ways = nn.HybridSequential(prefix="")  # the attribute is part of the names in saved parameters
            for channels in filter(None, (one, two, three)):
                kernels = [1] + [3] * (len(channels) - 1)
                strides = [1] * (len(channels) - 1) + [stride]
                branch = nn.HybridSequential(prefix="")
                branch.add(*[_conv(*convolution) for convolution in zip(channels, kernels, strides)])
                self.ways.add(branch)
            branch = nn.HybridSequential(prefix="")
            branch.add(pooling(3, 1, padding=1) if stride == 1 else MaxPoolFromStart())
            branch.add(*([_conv(pooled, 1)] if pooled else []))
            self.ways.add(branch)

    def hybrid_forward(self, F, x):
        return F.concat(*[branch(x) for branch in self.ways])


class MaxPoolFromStart(nn.HybridBlock):
    """3 x 3 max pooling with stride 2, its first window at 0: (N, C, H, W), none negative -> (N, C, H / 2, W / 2).

    Odd sides are rounded up, as by a padded convolution; MXNet's `ceil_mode` would round them down.
    """

    def hybrid_forward(self, F, x):
        x = F.pad(x, mode="constant", pad_width=(0, 0, 0, 0, 0, 2, 0, 2))
        return F.Pooling(x, kernel=(3, 3), stride=(2, 2), pool_type="max")


CUSTOM_BACKBONES = {
    "resnet50_v1b": resnet50_v1b,
    "se_resnet50": se_resnet50,
    "bn_inception": bn_inception,
    "shufflenet_v2": shufflenet_v2,
}


def _conv(channels, kernel, stride=1):
    """Convolution with "same" padding, batch norm, ReLU."""
    block = nn.HybridSequential(prefix="")
    block.add(nn.Conv2D(channels, kernel, stride, kernel // 2, use_bias=False), nn.BatchNorm(), nn.Activation("relu"))
    return block


def _depthwise(channels, stride):
    """A depthwise 3 x 3 convolution, and batch norm."""
    return nn.Conv2D(channels, 3, stride, 1, groups=channels, in_channels=channels, use_bias=False), nn.BatchNorm()


def _shuffle_branch(channels, stride):
    block = nn.HybridSequential(prefix="")
    block.add(_conv(channels, 1), *_depthwise(channels, stride), _conv(channels, 1))
    return block


def _mixed(F, passing, convolved):
    """Concatenates two halves of the channels and shuffles them: one channel of each half in turn."""
    x = F.concat(passing, convolved)
    x = F.reshape(x, shape=(0, -4, 2, -1, -2))  # (N, 2, C / 2, H, W)
    return F.reshape(F.swapaxes(x, 1, 2), shape=(0, -3, -2))


def _until_pooling(blocks, remove_stride):
    """The blocks of a network before its final pooling."""
    features = nn.HybridSequential(prefix=blocks.prefix)
    for block in blocks:
        if isinstance(block, END_OF_FEATURE_MAP):
            break
        features.add(block)
    if remove_stride:
        _remove_last_stride(features)
    return features


def _remove_last_stride(features):
    """Sets stride 1 in the first block of a ResNet's last stage, in its main path and in its shortcut."""
    stages = [block for block in features if isinstance(block, nn.HybridSequential)]
    for convolution in children(stages[-1][0], nn.Conv2D):
        if convolution._kwargs["stride"] == (2, 2):
            convolution._kwargs["stride"] = (1, 1)  # the zoo has no argument for it


def names():
    """The names of all backbones."""
    try:
        vision.get_model("")
    except ValueError as error:  # the zoo's names are in no public place but this message, one on each line
        return [*CUSTOM_BACKBONES, *str(error).split("\n\t")[1:]]


def children(block, kind):
    """All blocks of a class within a block, including itself."""
    own = [block] if isinstance(block, kind) else []
    return own + [found for child in block._children.values() for found in children(child, kind)]
