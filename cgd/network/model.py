"""The network: global descriptors of a backbone's last feature map, combined into one embedding.

Sources are named as in docs/sources.md: "the released graph" is the `-symbol.json` of the authors' CUB200 model.
"""

from cgd.network.backbones import children, convolutions
from cgd.network.descriptors import GeM, descriptor
from cgd.network.options import OPTIONS, check_branches
from cgd.system.environment import mx

nn = mx.gluon.nn

# Prefixes of parameter names: that of the released graph, so that its parameters load by name, and the classifier's.
HEAD_PREFIX, CLASSIFIER_PREFIX = "faenet0_", "auxiliary0_"

# Initialiser of all Dense layers. For the branches it is that of the released graph; for the classifier it is inferred.
XAVIER = mx.init.Xavier(rnd_type="uniform", factor_type="avg", magnitude=2)


class CGD(nn.HybridBlock):
    """Combination of multiple global descriptors.

    Each letter of `config` names a global descriptor of the last feature map: S (SPoC), M (MAC) or G (GeM). In each
    branch, a descriptor is reduced by a Dense layer and L2-normalised. The branches are concatenated (or added) and
    L2-normalised again, which gives the embedding.

    Inference: images (N, 3, H, W), normalised -> embeddings (N, dim) of unit length.
    Training (with `classes`): -> embeddings, [inputs of the ranking loss, (N, d) each], [logits (N, classes)].
    The auxiliary classifier takes the first descriptor, before its Dense layer. Its Xavier initialisation, the same as
    in the branches, is inferred; the known parts of the paper do not specify it.

    Parameters
    ----------
    config : str
        The descriptors in order, as in the paper: "MG", "SMG", ... Letters must be unique.
    dim : int
        Dimension of the embedding; with `fusion="concat"` it is divided equally among the branches.
    backbone : str
        Any name that `backbones.convolutions` knows.
    classes : int, optional
        Number of training classes, which selects the training outputs; 0: training without the auxiliary classifier.
    architecture : {"CGD", "A", "B"}
        The paper's Table 3. "A": each branch has its own ranking loss, and branches are combined for testing only.
        "B": the descriptors are combined before a single Dense layer.
    fusion : {"concat", "sum"}
        "concat" concatenates the branches; "sum" adds branches of dimension `dim` (the paper's Table 4).
    gem_p : float
        Power p of GeM, or its initial value.
    learn_p : bool
        Whether p is learned.
    dense_bias : bool
        Bias in the Dense layers of the branches. The released graph has it; the author says there is none.
    last_stride : {1, 2}
        Stride of the backbone's last stage. 1, as in the released graph, gives a feature map of 14 x 14 for an input of
        224 x 224. Ignored for backbones that are neither ResNets nor in `backbones.CUSTOM_BACKBONES`.

    Raises InputError for an unknown configuration or backbone, and if `dim` is not divisible among the branches.
    """

    def __init__(
        self,
        config="MG",
        dim=1536,
        backbone="resnet50_v1",
        classes=None,
        architecture="CGD",
        fusion="concat",
        gem_p=3.0,
        learn_p=False,
        dense_bias=True,
        last_stride=1,
    ):
        super().__init__(prefix=HEAD_PREFIX)
        check_branches(config, dim, fusion, architecture)
        arguments = locals()
        self.options = {name: arguments[name] for name in OPTIONS}
        self.architecture, self.fusion = architecture, fusion
        self.for_training = classes is not None
        self.features = convolutions(backbone, last_stride)
        self.descriptors = nn.HybridSequential(prefix="")
        self.reductions = nn.HybridSequential(prefix="")
        shares = len(config) if fusion == "concat" and architecture != "B" else 1
        for position, letter in enumerate(config):
            with self.name_scope():
                self.descriptors.add(descriptor(letter, gem_p, learn_p))
                if architecture != "B" or position == 0:
                    self.reductions.add(_reduction(dim // shares, dense_bias))
        self.classifier = _classifier(classes) if classes else None

    def hybrid_forward(self, F, x):
        x = self.features(x)
        pooled = [descriptor(x) for descriptor in self.descriptors]
        reduced = [_fuse(F, pooled, self.fusion)] if self.architecture == "B" else pooled
        branches = [_unit(F, reduce(vector)) for reduce, vector in zip(self.reductions, reduced)]
        embedding = _unit(F, _fuse(F, branches, self.fusion))
        if not self.for_training:
            return embedding
        ranked = branches if self.architecture == "A" else [embedding]
        return embedding, ranked, [self.classifier(pooled[0])] if self.classifier else []

    def embed(self, x):
        """The embeddings only, (N, dim), also of a network with training outputs."""
        return self(x)[0] if self.for_training else self(x)

    def clamp_p(self):
        """Clamps a learned p of GeM to its bounds; to be called after each optimiser step."""
        for gem in children(self.descriptors, GeM):
            if gem.p.grad_req != "null":
                gem.clamp_p()

    def gem_p(self):
        """The current p of GeM, a float. Requires the letter G in the configuration."""
        return float(children(self.descriptors, GeM)[0].p.list_data()[0].asscalar())

    def freeze_batch_norm(self):
        """Freezes the statistics, gamma and beta of the backbone's batch norm layers, as some re-implementations do."""
        for norm in children(self.features, nn.BatchNorm):
            norm._kwargs["use_global_stats"] = True
            norm.gamma.grad_req = norm.beta.grad_req = "null"


def _unit(F, x):
    return F.L2Normalization(x, mode="instance")


def _fuse(F, branches, fusion):
    if len(branches) == 1:
        return branches[0]
    return F.concat(*branches) if fusion == "concat" else F.add_n(*branches)


def _reduction(dim, bias):
    return nn.Dense(dim, use_bias=bias, weight_initializer=XAVIER)


def _classifier(classes):
    # Without an explicit initialiser the Dense layer would use MXNet's default, Uniform(0.07), regardless of its size.
    block = nn.HybridSequential(prefix=CLASSIFIER_PREFIX)
    with block.name_scope():
        block.add(nn.BatchNorm(), nn.Dense(classes, weight_initializer=XAVIER))
    return block
