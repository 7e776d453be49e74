"""Loads weights from files into networks, by name; either all parameters are set or none."""

import re
import sys
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace

from cgd.network import backbones, formats, naming
from cgd.system.environment import mx
from cgd.system.errors import InputError

model_store = mx.gluon.model_zoo.model_store

# Layers of ImageNet's classifier, which follow the convolutional part: the end of their names in MXNet's symbols.
# SqueezeNet's is its 26th convolution.
CLASSIFIER = re.compile(r"(^|_)(dense\d+|pred|conv25)_(weight|bias)$")

TIMEOUT = (15, 60)  # seconds without a connection, or without a byte, after which a download is tried again
MOST = 3  # names of each kind in a message

# Files in MXNet's model folder that `bash download.sh weights BACKBONE` fetches, for backbones that Gluon's zoo lacks.
OTHER_FILES = {
    "resnet50_v1b": "resnet50_v1b-0ecdba34.params",
    "se_resnet50": "seresnet50-0560-e75ef498.params",
    "bn_inception": "bninception-0754-75225419.params",
    "shufflenet_v2": "shufflenetv2_w1-1123-27435039.params",
}


def load_backbone(features, file):
    """Sets the parameters of a backbone, all of them, from a file of ImageNet weights or from a checkpoint.

    features : the HybridSequential of `backbones.convolutions`
    file : see docs/weights.md for the formats; the weights may be of the full network or of its features only. Its
        classifier is ignored.

    Raises InputError that names parameters that are missing, unknown or of another shape, and the backbone that the
    file fits.
    """
    try:
        arrays = naming.translated(formats.read(file))
        parameters, values = _matched(features, arrays)
    except ValueError as error:
        raise InputError(f"{file}: {error}")
    wrong = problems(parameters, values)
    if wrong:
        fitting = [name for name in backbones.names() if not problems(*_matched(_blank(name), arrays))]
        wrong += [f"the file fits --backbone {' or '.join(fitting)}"] if fitting else []
        raise InputError(f"{file}: {'; '.join(wrong)}")
    _set(parameters, values)


_blank = lru_cache(None)(backbones.convolutions)  # without values, so that all of them together are small


def _matched(features, arrays):
    """The parameters {name: Parameter} of `features`, by the kind of names that the arrays have, and {name: NDArray}.

    These names are either those of Gluon's `save_parameters` ("4.0.body.0.weight"), or those of MXNet's symbols
    ("resnetv10_stage1_conv0_weight"), whose prefix may differ or be missing.
    """
    if any("." in name for name in arrays):
        ignored = {name for name, value in arrays.items() if _is_classifier(name, value, len(features))}
        parameters = features._collect_params_with_prefix()
    else:
        parameters = dict(features.collect_params().items())
        arrays = _with_prefix(features.prefix, next(iter(parameters)), arrays)
        ignored = {name for name in arrays if CLASSIFIER.search(name)} - set(parameters)
    return parameters, {name: value for name, value in arrays.items() if name not in ignored}


def _is_classifier(name, value, blocks):
    """Whether it belongs to the output layer or, in VGG and AlexNet, to a Dense layer after the convolutional part."""
    first, _, last = name.partition(".")
    after = first.isdecimal() and int(first) >= blocks
    return first in ("output", "fc") or after and (last == "bias" or last == "weight" and value.ndim == 2)


def _with_prefix(own, first, arrays):
    """The arrays with the prefix `own` in place of the file's, which stands before the network's first parameter."""
    end = first[len(own) :]
    found = [name[: -len(end)] for name in arrays if name.endswith(end)]
    if not found:
        return arrays
    prefix = min(found, key=len)  # in "stage1_conv0_weight", too, the end is that of "conv0_weight"
    return {own + name[len(prefix) :] if name.startswith(prefix) else name: value for name, value in arrays.items()}


@contextmanager
def _impatient():
    """Lets MXNet's download give up on a server that says nothing: it gives `requests` no time limit."""
    module = sys.modules["mxnet.gluon.utils"]
    requests = module.requests
    module.requests = SimpleNamespace(get=partial(requests.get, timeout=TIMEOUT))
    try:
        yield
    finally:
        module.requests = requests


def zoo_file(backbone):
    """The path of the backbone's ImageNet weights in MXNet's model folder (~/.mxnet/models).

    Those of Gluon's zoo are downloaded if missing; others must have been fetched by download.sh. Raises InputError,
    naming the alternatives, if there are none.
    """
    alternatives = "give --backbone-params FILE, or --from-scratch to train without them"
    if backbone in OTHER_FILES:
        file = Path(mx.base.data_dir(), "models", OTHER_FILES[backbone])
        if not file.exists():
            raise InputError(
                f"{file}: the ImageNet weights of {backbone} are missing: bash download.sh weights {backbone} fetches "
                f"them; or {alternatives}"
            )
        return str(file)
    try:
        with _impatient():
            return model_store.get_model_file(backbone)
    except ValueError as error:
        raise InputError(f"no ImageNet weights for {backbone}: {error}; {alternatives}")
    except Exception as error:  # requests and urllib3 have many exception classes for failed downloads
        other = "bash download.sh weights tries several servers; or " if backbone == "resnet50_v1" else ""
        raise InputError(
            f"the ImageNet weights of {backbone} could not be downloaded ({type(error).__name__}); {other}"
            f"{alternatives}, or set MXNET_GLUON_REPO to a mirror"
        )


def set_parameters(parameters, values, source):
    """Sets `parameters` ({name: Parameter}) from `values` ({name: NDArray}), either all or none.

    Raises InputError that names parameters that are missing, unknown or of another shape; `source` is the file name in
    the message.
    """
    wrong = problems(parameters, values)
    if wrong:
        raise InputError(f"{source}: {'; '.join(wrong)}")
    _set(parameters, values)


def problems(parameters, values):
    """What keeps `values` ({name: NDArray}) from being those of `parameters` ({name: Parameter}), a list of texts."""
    found = differences(set(parameters), set(values))
    others = [name for name in parameters if name in values and not _fits(parameters[name].shape, values[name].shape)]
    found += [f"{name} has shape {values[name].shape}, expected {parameters[name].shape}" for name in others[:MOST]]
    return found + ([f"and {len(others) - MOST} more of another shape"] if len(others) > MOST else [])


def _fits(expected, shape):
    """Whether an array of this shape fits; 0 is a dimension that is unknown until the first forward pass."""
    return not expected or len(expected) == len(shape) and all(e in (0, n) for e, n in zip(expected, shape))


def _set(parameters, values):
    for name, parameter in parameters.items():
        parameter.shape = values[name].shape
        if parameter._data is None:
            parameter.initialize()
        parameter.set_data(values[name])


def check_names(expected, found, source):
    """Raises InputError that names parameters that are in only one of the sets `expected` and `found`."""
    wrong = differences(expected, found)
    if wrong:
        raise InputError(f"{source}: {'; '.join(wrong)}")


def differences(expected, found):
    """Names that are in only one of two sets, a list of texts."""
    texts = []
    for names, problem in ((expected - found, "lacks"), (found - expected, "has unknown")):
        if names:
            first = ", ".join(sorted(names)[:MOST]) + (", ..." if len(names) > MOST else "")
            texts.append(f"{problem} {len(names)} parameter(s): {first}")
    return texts
