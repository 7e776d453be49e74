"""The options of the network: their names, and checks of their values. Does not import MXNet."""

from cgd.system.errors import InputError

LETTERS, ARCHITECTURES, FUSIONS = "SMG", ("CGD", "A", "B"), ("concat", "sum")
DTYPES = ("float32", "bfloat16")  # of inference; checkpoints are in float32, or in int8 (cgd/quantize.py)
RUNTIMES = ("mxnet", "onnx")  # of inference
MAX_P = 6  # of GeM; for larger p, 1e-6 ** p underflows in float32, and the gradient of the root is not finite
MAX_IMAGE_SIDE = 4096  # of the network's input, in pixels

# Everything needed to rebuild a network: arguments of CGD, fields of a recipe, keys of a checkpoint's description.
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
    """Raises InputError unless `config` is valid, `dim` is divisible among its branches, and the choices are known."""
    if not config or set(config) - set(LETTERS) or len(set(config)) != len(config):
        raise InputError(f"configuration {config!r}: expected letters of {', '.join(LETTERS)}, each at most once")
    if fusion not in FUSIONS:
        raise InputError(f"fusion {fusion!r}: expected 'concat' or 'sum'")
    if architecture not in ARCHITECTURES:
        raise InputError(f"architecture {architecture!r}: expected 'CGD', 'A' or 'B'")
    if dim < 1 or (fusion == "concat" and architecture != "B" and dim % len(config)):
        raise InputError(f"dim {dim}: expected a positive multiple of {len(config)} for {config!r}")
