"""The network: global descriptors on a backbone's last map, and one embedding of them all.

Sources are named as in README: "the released graph" is the `-symbol.json` of the authors' CUB200 model.
"""

from cgd.backbones import children, convolutions
from cgd.environment import mx
from cgd.errors import InputError
from cgd.parameters import read_arrays
from cgd.recipes import check_branches

nn, model_store = mx.gluon.nn, mx.gluon.model_zoo.model_store

# Prefixes of parameter names: the released graph's, so that its parameters load by name, and the classifier's.
HEAD_PREFIX, CLASSIFIER_PREFIX = "faenet0_", "auxiliary0_"

# What it takes to build a network again: arguments of CGD, fields of a recipe, keys of a checkpoint's description.
OPTIONS = (
    "config",
    "dim",
    "backbone",
    "combination",
    "combine",
    "gem_p",
    "learn_p",
    "dense_bias",
    "keep_stride",
)

# Of each Dense layer. The released graph has it for the branches'; for the classifier's it is inferred.
XAVIER = mx.init.Xavier(rnd_type="uniform", factor_type="avg", magnitude=2)

MOST_P = 6.0  # of GeM: beyond, 1e-6 to the power of p underflows in float32, and the gradient of the root is not finite


class SPoC(nn.HybridBlock):
    """Sum pooling of convolutions, as a mean: (N, C, H, W) -> (N, C, 1, 1)."""

    def hybrid_forward(self, F, x):
        return _global_pool(F, x, "avg")


class MAC(nn.HybridBlock):
    """Maximum activation of convolutions: (N, C, H, W) -> (N, C, 1, 1)."""

    def hybrid_forward(self, F, x):
        return _global_pool(F, x, "max")


class GeM(nn.HybridBlock):
    """Generalised mean, (mean x^p)^(1/p) for each channel: (N, C, H, W) -> (N, C, 1, 1).

    One scalar p for all channels, 3 at first. The released model keeps it (`lr_mult` 0); the paper allows learning it.
    The map is clipped to [1e-6, 1e12] first: the power has no finite gradient at 0. A learned p is to be kept in bounds
    by `bound_p` after each step.
    """

    def __init__(self, p=3.0, learn_p=False, **kwargs):
        super().__init__(**kwargs)
        with self.name_scope():
            self.p = self.params.get("p", shape=(1,), init=mx.init.Constant(p))
        self.p.lr_mult = 1.0 if learn_p else 0.0
        self.p.grad_req = "write" if learn_p else "null"

    def bound_p(self):
        """Puts a learned p back into [1, MOST_P]: below 1 it is no generalised mean that stresses large values."""
        for p in self.p.list_data():
            p[:] = p.clip(1, MOST_P)

    def hybrid_forward(self, F, x, p):
        x = F.broadcast_power(F.clip(x, a_min=1e-6, a_max=1e12), p)
        return F.broadcast_power(_global_pool(F, x, "avg"), 1.0 / p)


def _global_pool(F, x, pool_type):
    # The attributes are the released graph's; Gluon's own GlobalAvgPool2D of today adds another.
    return F.Pooling(
        x,
        kernel=(1, 1),
        stride=(1, 1),
        pad=(0, 0),
        global_pool=True,
        pool_type=pool_type,
        pooling_convention="full",
    )


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
        Length of the embedding; with `combine="concat"` each branch has its equal share of it.
    backbone : str
        Any name that `backbones.convolutions` knows.
    classes : int, optional
        Number of training classes, for the training form; 0 for one without the auxiliary classifier.
    combination : {"CGD", "A", "B"}
        The paper's Table 3. "A": each branch has a ranking loss of its own, and they are combined for the test alone.
        "B": the descriptors are combined before one Dense layer for all.
    combine : {"concat", "sum"}
        "concat" joins; "sum" adds branches of full length (the paper's Table 4).
    gem_p, learn_p : float, bool
        GeM's power and whether it is learned.
    dense_bias : bool
        Bias in the branches' Dense layers. The released graph has one; the author says there is none.
    keep_stride : bool
        Leave the backbone's last stride as it is. By default it is removed, as in the released graph, so that an input
        of 224 gives a map of 14 x 14; networks that are no ResNet and not of `backbones.OURS` always stay as they are.

    Raises InputError for an unknown configuration or backbone, and for a `dim` the branches cannot share.
    """

    def __init__(
        self,
        config="MG",
        dim=1536,
        backbone="resnet50_v1",
        classes=None,
        combination="CGD",
        combine="concat",
        gem_p=3.0,
        learn_p=False,
        dense_bias=True,
        keep_stride=False,
    ):
        super().__init__(prefix=HEAD_PREFIX)
        check_branches(config, dim, combine, combination)
        given = locals()
        self.options = {name: given[name] for name in OPTIONS}
        self.combination, self.combine = combination, combine
        self.for_training = classes is not None
        self.features = convolutions(backbone, keep_stride)
        self.descriptors = nn.HybridSequential(prefix="")
        self.reductions = nn.HybridSequential(prefix="")
        shares = len(config) if combine == "concat" and combination != "B" else 1
        for position, letter in enumerate(config):
            with self.name_scope():
                self.descriptors.add(_descriptor(letter, gem_p, learn_p))
                if combination != "B" or position == 0:
                    self.reductions.add(_reduction(dim // shares, dense_bias))
        self.classifier = _classifier(classes) if classes else None

    def hybrid_forward(self, F, x):
        x = self.features(x)
        pooled = [descriptor(x) for descriptor in self.descriptors]
        reduced = [_combine(F, pooled, self.combine)] if self.combination == "B" else pooled
        branches = [_unit(F, reduce(vector)) for reduce, vector in zip(self.reductions, reduced)]
        embedding = _unit(F, _combine(F, branches, self.combine))
        if not self.for_training:
            return embedding
        ranked = branches if self.combination == "A" else [embedding]
        return embedding, ranked, [self.classifier(pooled[0])] if self.classifier else []

    def embed(self, x):
        """The embedding alone, (N, dim), in either form."""
        return self(x)[0] if self.for_training else self(x)

    def bound_p(self):
        """Keeps a learned power of GeM in bounds; to be called after each step of the optimiser."""
        for gem in children(self.descriptors, GeM):
            if gem.p.grad_req != "null":
                gem.bound_p()

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


def _combine(F, branches, combine):
    if len(branches) == 1:
        return branches[0]
    return F.concat(*branches) if combine == "concat" else F.add_n(*branches)


def _descriptor(letter, gem_p, learn_p):
    if letter == "G":
        return GeM(gem_p, learn_p, prefix="gem0_")
    return SPoC(prefix="") if letter == "S" else MAC(prefix="")


def _reduction(dim, bias):
    return nn.Dense(dim, use_bias=bias, weight_initializer=XAVIER)


def _classifier(classes):
    # Without an initialiser of its own the Dense layer would have MXNet's default, Uniform(0.07) whatever its size.
    block = nn.HybridSequential(prefix=CLASSIFIER_PREFIX)
    with block.name_scope():
        block.add(nn.BatchNorm(), nn.Dense(classes, weight_initializer=XAVIER))
    return block


def load_backbone(features, file):
    """Sets the parameters of `features` from a parameter file of the whole network, or of its features alone.

    Understands the names of Gluon's `save_parameters` ("features.0.weight", "0.weight") and the older ones with a
    network's prefix ("resnetv10_conv0_weight"). The zoo's classifier, "output", is left out.
    Raises InputError that names what is missing, left over or of another shape.
    """
    loaded = read_arrays(file)
    if any("." in name for name in loaded):
        parameters = features._collect_params_with_prefix()
        loaded = {name[len("features.") :] if name.startswith("features.") else name: loaded[name] for name in loaded}
        ends = {str(position) for position in range(len(features), 1000)} | {"output"}
        loaded = {name: value for name, value in loaded.items() if name.split(".")[0] not in ends}
    else:
        parameters = dict(features.collect_params().items())
        loaded = {name: value for name, value in loaded.items() if "_dense" not in name}
    set_parameters(parameters, loaded, file)


def zoo_file(backbone):
    """The file with the zoo's ImageNet weights, downloaded when it is not there yet (~/.mxnet/models).

    Raises InputError, which names the ways out, when there is none or it cannot be had.
    """
    ways_out = "give --backbone-params FILE, or --from-scratch to do without"
    try:
        return model_store.get_model_file(backbone)
    except ValueError as error:
        raise InputError("no ImageNet weights for {}: {}; {}".format(backbone, error, ways_out))
    except Exception as error:  # requests and urllib3 have a class for each way a download fails
        raise InputError(
            "the ImageNet weights of {} could not be downloaded ({}); {}, or set MXNET_GLUON_REPO to a mirror".format(
                backbone, type(error).__name__, ways_out
            )
        )


def set_parameters(parameters, values, source):
    """Sets each of `parameters` ({name: Parameter}) from `values` ({name: NDArray}), all or nothing.

    Raises InputError that names what is missing, left over or of another shape; `source` is the file it speaks of.
    """
    check_names(set(parameters), set(values), source)
    for name, parameter in parameters.items():
        expected, shape = parameter.shape, values[name].shape
        # 0 stands for a size that is known only once a picture has gone through
        if expected and (len(expected) != len(shape) or any(e not in (0, n) for e, n in zip(expected, shape))):
            raise InputError("{}: {} has shape {}, expected {}".format(source, name, shape, expected))
    for name, parameter in parameters.items():
        parameter.shape = values[name].shape
        if parameter._data is None:
            parameter.initialize()
        parameter.set_data(values[name])


def check_names(expected, found, source):
    """Raises InputError that names the parameters missing from `found` and those that nobody expects."""
    for names, trouble in ((expected - found, "lacks"), (found - expected, "has unknown")):
        if names:
            some = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
            raise InputError("{} {} {} parameter(s): {}".format(source, trouble, len(names), some))
