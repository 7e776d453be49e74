"""CGD: "Combination of Multiple Global Descriptors for Image Retrieval" (arXiv:1903.10663) in MXNet/Gluon.

The public names, which docs/api.md describes, are imported when they are used: MXNet takes more than a second.
"""

import importlib

_PUBLIC = {
    "load": "cgd.retrieval.describer",
    "nearest": "cgd.retrieval.recall",
    "recall_at_k": "cgd.retrieval.recall",
    "load_dataset": "cgd.data.datasets",
    "CGD": "cgd.network.model",
    "InputError": "cgd.system.errors",
}
__all__ = list(_PUBLIC)


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'cgd' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), {"load_dataset": "load"}.get(name, name))
    globals()[name] = value
    return value


def __dir__():
    return sorted([*globals(), *__all__])
