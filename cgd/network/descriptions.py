"""The description of a checkpoint, PREFIX.json: its network and how its images are prepared. Does not import MXNet."""

import glob
import json
import re
from functools import lru_cache
from pathlib import Path

from cgd.network import protobuf
from cgd.network.options import DTYPES, MAX_IMAGE_SIDE, RUNTIMES, check_branches
from cgd.system.errors import InputError, say

FILES = ("-symbol.json", "-0000.params", ".json")  # what a checkpoint's prefix is followed by; the last may be missing
RELEASED_NAME = "CGD.CUB200.C_concat_MG.ResNet50v.dim1536"
# The options of the released checkpoint, from the authors' evaluation code; defaults for missing keys of a description.
RELEASED = {
    "config": "MG",
    "dim": 1536,
    "backbone": "resnet50_v1",
    "architecture": "CGD",
    "fusion": "concat",
    "gem_p": 3.0,
    "learn_p": False,
    "dense_bias": True,
    "last_stride": 1,
    "image_width": 224,
    "image_height": 224,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "cropped": True,
    "dataset": "cub200",
    "dtype": "float32",
}

# Fields of ONNX's protobuf messages, from onnx.proto, and what a model's metadata must say to be evaluated.
METADATA, KEY, VALUE = 14, 1, 2
PREPARATION = ("dataset", "cropped", "image_width", "image_height", "mean", "std")


def is_onnx(name):
    """Whether a network's name is that of an ONNX file, not the prefix of a checkpoint."""
    return name.endswith(".onnx")


def choose_runtime(name, runtime=None, dtype="float32"):
    """ "mxnet" or "onnx", what runs the network: as given, or by the network's name.

    Raises InputError for a runtime that cannot run it, or not with this precision.
    """
    runtime = runtime or ("onnx" if is_onnx(name) else "mxnet")
    for flag, value, choices in (("--runtime", runtime, RUNTIMES), ("--dtype", dtype, DTYPES)):
        if value not in choices:
            raise InputError(f"{flag} {value}: expected one of {', '.join(choices)}")
    if runtime == "onnx" and dtype != "float32":
        raise InputError(f"--dtype {dtype}: for MXNet only, not for --runtime onnx")
    if runtime == "mxnet" and is_onnx(name):
        raise InputError(f"--runtime mxnet: MXNet cannot run {name}; give its checkpoint")
    return runtime


def read(name):
    """The description: dict, RELEASED updated with PREFIX.json if it exists, or with the metadata of an ONNX file.

    Raises InputError if PREFIX.json is invalid, if another file of the checkpoint is missing, and as `read_onnx`.
    """
    if is_onnx(name):
        return read_onnx(name)
    for ending in ("-symbol.json", "-0000.params"):
        _must_exist(name, ending)
    if not Path(f"{name}.json").exists():
        part = next(Path(name).parent.glob(f".part-????????-{glob.escape(Path(name).name)}.json"), None)
        if part:  # see checkpoints.write
            hint = f"or its writing was cut off: then resume the run, or remove {part}"
            raise InputError(f"{name}: is being written, {hint}")
        _say_that_it_is_taken_as_released(name)
    return dict(RELEASED, **of_file(f"{name}.json"))


def read_with_dim(name):
    """As `read`, but dimensions that PREFIX.json does not give are those of the graph. Imports MXNet only for this."""
    description = read(name)
    if is_onnx(name) or "dim" in of_file(f"{name}.json"):
        return description
    from cgd.network.checkpoints import Checkpoint

    return Checkpoint(name).description


@lru_cache(maxsize=None)  # once for each name
def _say_that_it_is_taken_as_released(name):
    say(f"note: {name}.json is missing: taken as the authors' model, MG, 1536-d, 224 x 224, cropped, cub200")


def must_be_a_checkpoint(name):
    """Raises InputError for the name of an ONNX file."""
    if is_onnx(name):
        raise InputError(f"{name}: is an ONNX file; give the checkpoint that it was made from")


def must_be_in_float32(prefix, description):
    """Raises InputError for a checkpoint in int8, which MXNet can evaluate, but nothing can train or translate."""
    if description["dtype"] != "float32":
        origin = description.get("quantized_from", "the one in float32")
        raise InputError(f"{prefix}: is in int8; give the checkpoint that it was made from: {origin}")


def read_onnx(file):
    """The description of an ONNX model that cgd.export wrote, from the metadata in it: dict, as that of `read`.

    Raises InputError if the file is missing, or is not such a model.
    """
    try:
        fields = protobuf.fields(memoryview(Path(file).read_bytes()))
        entries = [dict(protobuf.fields(value)) for number, value in fields if number == METADATA]
        texts = {entry[KEY].tobytes().decode(): entry[VALUE].tobytes().decode() for entry in entries}
        description = {key: json.loads(text) for key, text in texts.items() if key in RELEASED}
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(f"{file}: not an ONNX model ({type(error).__name__}: {error}); the file may be truncated")
    missing = [key for key in PREPARATION if key not in description]
    if missing:
        raise InputError(f"{file}: its metadata lack {', '.join(missing)}; expected a model of python -m cgd.export")
    return dict(RELEASED, **_checked(description, file))


def of_file(file):
    """The keys that a PREFIX.json gives, with current names; {} without one. Raises InputError for a broken one."""
    if not Path(file).exists():
        return {}
    try:
        description = json.loads(Path(file).read_text())
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not JSON ({error})")
    if not isinstance(description, dict):
        raise InputError(f"{file}: expected a JSON object")
    return _checked(description, file)


def _checked(description, file):
    """The description with current names. Raises InputError for a value of another kind."""
    _rename(description)
    for key, example in RELEASED.items():
        value = description.get(key, example)
        if isinstance(example, float):
            fits = _is_number(value) and value > 0
        else:
            fits = type(value) is type(example) and value != ""
        if not fits or (key.startswith("image_") and not 1 <= value <= MAX_IMAGE_SIDE):
            limit = f", at most {MAX_IMAGE_SIDE}" if key.startswith("image_") else ""
            raise InputError(f"{file}: {key} is {value!r}; expected a value like {example!r}{limit}")
        if isinstance(example, list) and not (len(value) == 3 and all(map(_is_number, value))):
            raise InputError(f"{file}: {key} is {value!r}; expected three numbers")
        if key == "dtype" and value not in ("float32", "int8"):
            raise InputError(f"{file}: dtype is {value!r}; expected 'float32' or 'int8'")
        if key == "std" and min(value) <= 0:
            raise InputError(f"{file}: std is {value!r}; expected three numbers above 0")
    if "config" in description:
        try:
            check_branches(*({**RELEASED, **description}[name] for name in ("config", "dim", "fusion", "architecture")))
        except InputError as error:
            raise InputError(f"{file}: {error}")
    if "gem_p" in description:
        description["gem_p"] = float(description["gem_p"])  # 3 and 3.0 must give the same graph
    return description


def _rename(description):
    """Renames the keys of checkpoints that were saved before some options were renamed."""
    for old, new in (("combination", "architecture"), ("combine", "fusion")):
        if old in description:
            description[new] = description.pop(old)
    if "keep_stride" in description:
        description["last_stride"] = 2 if description.pop("keep_stride") else 1


def _is_number(value):
    """Whether it is an int or a float that is finite in float32."""
    return type(value) in (int, float) and abs(value) < 1e38  # false for NaN too


def _must_exist(prefix, ending):
    if Path(f"{prefix}{ending}").is_file():
        return
    hint = "a checkpoint is given by its prefix, the path without -symbol.json"
    meant = re.sub(r"(\.tar\.gz|-symbol\.json|-0000\.params|\.json)$", "", str(prefix))
    if meant != str(prefix) and Path(f"{meant}{ending}").is_file():
        raise InputError(f"{prefix}: a checkpoint is given by its prefix: {meant}")
    if Path(f"{meant}.tar.gz").exists():
        hint = f"unpack {meant}.tar.gz first: tar zxf {meant}.tar.gz -C {Path(meant).parent}; then give {meant}"
    elif Path(meant).name == RELEASED_NAME:
        hint = "the authors' checkpoint is fetched by: bash download.sh checkpoint"
    elif Path(prefix).is_dir():
        there = sorted(Path(prefix).glob("*-symbol.json"))
        example = str(there[0])[: -len("-symbol.json")] if there else f"{prefix}/last"
        hint = f"that is a folder; name a checkpoint in it, such as {example}"
    raise InputError(f"{prefix}{ending}: no such file; {hint}")
