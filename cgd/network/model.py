"""The network: global descriptors on a backbone's last map, and one embedding of them all.

Sources are named as in README: "the released graph" is the `-symbol.json` of the authors' CUB200 model.
"""

from cgd.network.backbones import children, convolutions
from cgd.network.descriptors import GeM, descriptor
from cgd.network.options import OPTIONS, check_branches
from cgd.system.environment import mx

nn = mx.gluon.nn

# Prefixes of parameter names: the released graph's, so that its parameters load by name, and the classifier's.
HEAD_PREFIX, CLASSIFIER_PREFIX = "faenet0_", "auxiliary0_"

# Of each Dense layer. The released graph has it for the branches'; for the classifier's it is inferred.
XAVIER = mx.init.Xavier(rnd_type="uniform", factor_type="avg", magnitude=2)


class CGD(nn.HybridBlock):
    """Combination of multiple global descriptors.

    Each letter of `config` names a global descriptor of the backbone's last map: S (SPoC), M (MAC) or G (GeM). Each is
    reduced by a Dense layer and L2-normalised, a branch; together, and normalised once more, they are the embedding.

    images (N, 3, H, W), normalised -> embedding (N, dim), each row of length 1.
    With `classes`, the training form: -> embedding, [what the ranking loss sees, (N, d) each], [logits (N, classes)].
    The logits are those of the auxiliary classifier, which sees the first letter's descriptor before its Dense layer.
    Its weights begin as the branches' do (Xavier): inferred, for nothing known of the paper says it.

    Parameters
    ----------
    config : str
        The descriptors in order, as in the paper: "MG", "SMG", ... No letter twice.
    dim : int
        Length of the embedding; with `fusion="concat"` each branch has its equal share of it.
    backbone : str
        Any name that `backbones.convolutions` knows.
    classes : int, optional
        Number of training classes, for the training form; 0 for one without the auxiliary classifier.
    architecture : {"CGD", "A", "B"}
        The paper's Table 3. "A": each branch has a ranking loss of its own, and they are combined for the test alone.
        "B": the descriptors are combined before one Dense layer for all.
    fusion : {"concat", "sum"}
        "concat" joins; "sum" adds branches of full length (the paper's Table 4).
    gem_p, learn_p : float, bool
        GeM's power and whether it is learned.
    dense_bias : bool
        Bias in the branches' Dense layers. The released graph has one; the author says there is none.
    last_stride : {1, 2}
        Stride of the backbone's last stage. 1, as in the released graph, turns an input of 224 into a map of 14 x 14.
        Networks that are neither a ResNet nor one of `backbones.CUSTOM_BACKBONES` always stay as they are.

    Raises InputError for an unknown configuration or backbone, and for a `dim` the branches cannot share.
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
        values = (config, dim, backbone, architecture, fusion, gem_p, learn_p, dense_bias, last_stride)
        self.options = dict(zip(OPTIONS, values))
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
        """The embedding alone, (N, dim), in either form."""
        return self(x)[0] if self.for_training else self(x)

    def clamp_p(self):
        """Keeps a learned power of GeM in bounds; to be called after each step of the optimiser."""
        for gem in children(self.descriptors, GeM):
            if gem.p.grad_req != "null":
                gem.clamp_p()

    def gem_p(self):
        """GeM's power, a float. Only for a network with the letter G."""
        return float(children(self.descriptors, GeM)[0].p.list_data()[0].asscalar())

    def freeze_batch_norm(self):
        """Batch norm of the backbone keeps its statistics, scale and shift, as some re-implementations train."""
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
    # Without an initialiser of its own the Dense layer would have MXNet's default, Uniform(0.07) whatever its size.
    block = nn.HybridSequential(prefix=CLASSIFIER_PREFIX)
    with block.name_scope():
        block.add(nn.BatchNorm(), nn.Dense(classes, weight_initializer=XAVIER))
    return block
