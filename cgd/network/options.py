"""What a network is built from: the names of its options, and which of their values go together. Without MXNet."""

from cgd.system.errors import InputError

LETTERS, ARCHITECTURES, FUSIONS = "SMG", ("CGD", "A", "B"), ("concat", "sum")

# What it takes to build a network again: arguments of CGD, fields of a recipe, keys of a checkpoint's description.
OPTIONS = (
    "config",
    "dim",
    "backbone",
    "architecture",
    "fusion",
    "gem_p",
    "learn_p",
    "dense_bias",
    "last_stride",
)


def check_branches(config, dim, fusion="concat", architecture="CGD"):
    """Raises InputError unless `config` names descriptors, each once, that can share `dim`."""
    if not config or set(config) - set(LETTERS) or len(set(config)) != len(config):
        raise InputError("configuration {!r}: expected letters of S, M and G, each at most once".format(config))
    if fusion not in FUSIONS:
        raise InputError("fusion {!r}: expected 'concat' or 'sum'".format(fusion))
    if architecture not in ARCHITECTURES:
        raise InputError("architecture {!r}: expected 'CGD', 'A' or 'B'".format(architecture))
    if dim < 1 or (fusion == "concat" and architecture != "B" and dim % len(config)):
        raise InputError("dim {}: expected a positive multiple of {} for {!r}".format(dim, len(config), config))
