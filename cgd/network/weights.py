"""Loads weights from files into networks, by name; either all parameters are set or none."""

from cgd.network.parameters import read_arrays
from cgd.system.environment import mx
from cgd.system.errors import InputError

model_store = mx.gluon.model_zoo.model_store


def load_backbone(features, file):
    """Sets the parameters of `features` from a parameter file of the full network, or of its features only.

    Supports the names of Gluon's `save_parameters` ("features.0.weight", "0.weight") and older names with the network's
    prefix ("resnetv10_conv0_weight"). The classifier ("output") is ignored.
    Raises InputError that names parameters that are missing, unknown or of another shape.
    """
    loaded = read_arrays(file)
    if any("." in name for name in loaded):
        parameters = features._collect_params_with_prefix()
        loaded = {name[len("features.") :] if name.startswith("features.") else name: loaded[name] for name in loaded}
        ignored = {str(position) for position in range(len(features), 1000)} | {"output"}
        loaded = {name: value for name, value in loaded.items() if name.split(".")[0] not in ignored}
    else:
        parameters = dict(features.collect_params().items())
        loaded = {name: value for name, value in loaded.items() if "_dense" not in name}
    set_parameters(parameters, loaded, file)


def zoo_file(backbone):
    """The path of the zoo's ImageNet weights, downloaded to ~/.mxnet/models if missing.

    Raises InputError, naming the alternatives, if the zoo has none or the download fails.
    """
    alternatives = "give --backbone-params FILE, or --from-scratch to train without them"
    try:
        return model_store.get_model_file(backbone)
    except ValueError as error:
        raise InputError(f"no ImageNet weights for {backbone}: {error}; {alternatives}")
    except Exception as error:  # requests and urllib3 have many exception classes for failed downloads
        raise InputError(
            f"the ImageNet weights of {backbone} could not be downloaded ({type(error).__name__}); {alternatives}, or "
            "set MXNET_GLUON_REPO to a mirror"
        )


def set_parameters(parameters, values, source):
    """Sets `parameters` ({name: Parameter}) from `values` ({name: NDArray}), either all or none.

    Raises InputError that names parameters that are missing, unknown or of another shape; `source` is the file name in
    the message.
    """
    check_names(set(parameters), set(values), source)
    for name, parameter in parameters.items():
        expected, shape = parameter.shape, values[name].shape
        # 0 is a dimension that is unknown until the first forward pass
        if expected and (len(expected) != len(shape) or any(e not in (0, n) for e, n in zip(expected, shape))):
            raise InputError(f"{source}: {name} has shape {shape}, expected {expected}")
    for name, parameter in parameters.items():
        parameter.shape = values[name].shape
        if parameter._data is None:
            parameter.initialize()
        parameter.set_data(values[name])


def check_names(expected, found, source):
    """Raises InputError that names parameters that are in only one of the sets `expected` and `found`."""
    for names, problem in ((expected - found, "lacks"), (found - expected, "has unknown")):
        if names:
            first = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
            raise InputError(f"{source}: {problem} {len(names)} parameter(s): {first}")
