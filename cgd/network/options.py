"""What a network is built from: the names of its options, and which of their values go together. Without MXNet."""

from cgd.system.errors import InputError

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


def check_branches(config, dim, combine="concat", combination="CGD"):
    """Raises InputError unless `config` names descriptors, each once, that can share `dim`."""
    if not config or set(config) - set("SMG") or len(set(config)) != len(config):
        raise InputError("configuration {!r}: expected letters of S, M and G, each at most once".format(config))
    if combine not in ("concat", "sum"):
        raise InputError("combine {!r}: expected 'concat' or 'sum'".format(combine))
    if combination not in ("CGD", "A", "B"):
        raise InputError("combination {!r}: expected 'CGD', 'A' or 'B'".format(combination))
    if dim < 1 or (combine == "concat" and combination != "B" and dim % len(config)):
        raise InputError("dim {}: expected a positive multiple of {} for {!r}".format(dim, len(config), config))
