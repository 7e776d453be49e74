"""Weights from files into networks: by name, all or nothing."""

from cgd.network.parameters import read_arrays
from cgd.system.environment import mx
from cgd.system.errors import InputError

model_store = mx.gluon.model_zoo.model_store


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
        raise InputError(f"no ImageNet weights for {backbone}: {error}; {ways_out}")
    except Exception as error:  # requests and urllib3 have a class for each way a download fails
        raise InputError(
            f"the ImageNet weights of {backbone} could not be downloaded ({type(error).__name__}); {ways_out}, or set MXNET_GLUON_REPO to a mirror"
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
            raise InputError(f"{source}: {name} has shape {shape}, expected {expected}")
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
            raise InputError(f"{source} {trouble} {len(names)} parameter(s): {some}")
