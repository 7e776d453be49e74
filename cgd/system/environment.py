"""MXNet, made importable on today's Pythons; its devices, threads and seeds.

Every module takes MXNet from here (`from cgd.system.environment import mx`): what has to happen before that import
happens in this file and nowhere else. One flag acts then, before the arguments are parsed: see `_forbid_tf32`.
"""

import ctypes
import importlib.util
import os
import random
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from cgd.system import machine
from cgd.system.errors import InputError, report

# The CUDA 11 libraries that mxnet-cu112's libmxnet.so links to and does not carry, each with the wheel that has it.
# In the order in which they need one another; cuDNN opens its parts by name once they are wanted.
CUDA_LIBRARIES = {
    "libcudart.so.11.0": "nvidia-cuda-runtime-cu11",
    "libnvrtc.so.11.2": "nvidia-cuda-nvrtc-cu11",
    "libnvToolsExt.so.1": "nvidia-nvtx-cu11",
    "libcublasLt.so.11": "nvidia-cublas-cu11",
    "libcublas.so.11": "nvidia-cublas-cu11",
    "libcufft.so.10": "nvidia-cufft-cu11",
    "libcurand.so.10": "nvidia-curand-cu11",
    "libcusolver.so.11": "nvidia-cusolver-cu11",
    "libnccl.so.2": "nvidia-nccl-cu11",
    "libcudnn_ops_infer.so.8": "nvidia-cudnn-cu11",
    "libcudnn_cnn_infer.so.8": "nvidia-cudnn-cu11",
    "libcudnn_ops_train.so.8": "nvidia-cudnn-cu11",
    "libcudnn_cnn_train.so.8": "nvidia-cudnn-cu11",
    "libcudnn_adv_infer.so.8": "nvidia-cudnn-cu11",
    "libcudnn_adv_train.so.8": "nvidia-cudnn-cu11",
    "libcudnn.so.8": "nvidia-cudnn-cu11",
}

TF32_FLAG, TF32_VARIABLE = "--tf32", "NVIDIA_TF32_OVERRIDE"


def _restore_numpy_names():
    """MXNet 1.9.1 uses numpy.bool and its like, which numpy 1.24 took away."""
    import numpy

    for name, builtin in (("bool", bool), ("int", int), ("float", float), ("complex", complex), ("object", object)):
        if name not in vars(numpy):
            setattr(numpy, name, builtin)


def _restore_distutils():
    """MXNet 1.9.1 imports distutils, which Python 3.12 took away; setuptools brings it back when imported first."""
    if sys.version_info >= (3, 12):
        import setuptools  # noqa: F401


def _use_all_cores():
    """MXNet alone takes half of the cores, for it believes that two share one unit; it reads this when imported."""
    os.environ.setdefault("OMP_NUM_THREADS", str(machine.usable_cores()))


def _forbid_tf32():
    """Full float32 on Ampere and Ada, where cuDNN 8 by default rounds a convolution's factors to TF32 (10 bits).

    0 forbids that to all of NVIDIA's libraries. They read it when they are loaded, which is before any arguments are
    parsed: so the flag, which train.py alone has, is looked for among the process's words, where it is never shortened
    (errors.Parser). A variable that the user set stays, but for a 0 beside the flag.
    """
    if TF32_FLAG not in sys.argv:
        os.environ.setdefault(TF32_VARIABLE, "0")
    elif not tf32_allowed():
        del os.environ[TF32_VARIABLE]


def tf32_allowed():
    """Whether NVIDIA's libraries may use TF32, on GPUs that have it."""
    return os.environ.get(TF32_VARIABLE) != "0"


def _load_cuda_wheels():
    """Loads the CUDA libraries of the nvidia-*-cu11 wheels, for all to see, where libmxnet.so then finds them."""
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(folder) for folder in spec.submodule_search_locations] if spec else []
    for library in CUDA_LIBRARIES:
        for path in (path for folder in folders for path in folder.glob("*/lib/" + library)):
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


def _explain(error):
    """One line for the dynamic linker's complaint: the wheel that is missing, or the build that fits this machine."""
    missing = re.search(r"(lib[\w.+-]+\.so[\w.]*): cannot open shared object file", str(error))
    if not missing:
        return "MXNet cannot be loaded: {}".format(error)
    library = missing.group(1)
    if library == "libcuda.so.1":
        return (
            "this is MXNet's GPU build, and the machine has no NVIDIA driver (libcuda.so.1): install one, or replace "
            "it by the CPU build: pip uninstall -y mxnet-cu112, then pip install -r requirements-cpu.txt"
        )
    if library in CUDA_LIBRARIES:
        return "MXNet needs {}: pip install -r requirements.txt (the wheel {} has it)".format(
            library, CUDA_LIBRARIES[library]
        )
    return "MXNet needs the system library {}, which this machine lacks".format(library)


def _import_mxnet():
    machine.check_python()
    _restore_numpy_names()
    _restore_distutils()
    _use_all_cores()
    _forbid_tf32()
    _load_cuda_wheels()
    try:
        with _without_role():
            import mxnet
    except OSError as error:
        raise InputError(_explain(error))
    return mxnet


# What this process is where several machines train together (cgd/cluster.py), or None.
DMLC_ROLE = os.environ.get("DMLC_ROLE")


@contextmanager
def _without_role():
    """As a scheduler or server MXNet would serve within its import, and never come back from it."""
    os.environ.pop("DMLC_ROLE", None)
    try:
        yield
    finally:
        if DMLC_ROLE is not None:
            os.environ["DMLC_ROLE"] = DMLC_ROLE


try:
    mx = _import_mxnet()
except InputError as error:  # the importing command has no `main` yet that could report it
    sys.exit(report(error))


def context(gpu):
    """The device for `--gpu`: mx.gpu(gpu), or mx.cpu() for a negative number.

    GPU 0, the default, falls back to the CPU with one line that says so where there is no GPU to use.
    Raises InputError for another number without such a GPU, and for a GPU that MXNet has no code for.
    """
    if gpu < 0:
        return mx.cpu()
    built_with_cuda = mx.runtime.Features().is_enabled("CUDA")
    capabilities = machine.gpu_capabilities(machine.open_driver()) if built_with_cuda else []
    if gpu < len(capabilities):
        if not machine.has_code_for(capabilities[gpu]):
            raise InputError("--gpu {}: {}; --gpu -1 asks for the CPU".format(gpu, machine.no_code(capabilities[gpu])))
        return mx.gpu(gpu)
    found = "{} GPU(s) found".format(len(capabilities)) if built_with_cuda else "this is MXNet's CPU build"
    if gpu > 0 or capabilities:
        raise InputError("--gpu {}: {}; --gpu -1 asks for the CPU".format(gpu, found))
    print("{}: running on the CPU ({} threads)".format(found, os.environ["OMP_NUM_THREADS"]), file=sys.stderr)
    return mx.cpu()


@contextmanager
def memory_for(advice):
    """Within, running out of memory is an InputError that ends with `advice`.

    MXNet reports it where a result is waited for, as an MXNetError with the allocator's, CUDA's or cuDNN's own words.
    """
    try:
        yield
    except mx.base.MXNetError as error:
        if not _OUT_OF_MEMORY.search(str(error)):
            raise
        raise InputError("out of memory; {}".format(advice))


_OUT_OF_MEMORY = re.compile(
    "out of memory|failed to allocate|allocation failed|ALLOC_FAILED|bad_alloc"
    "|failed to find any .* convolution algorithm|(CUDNN|CUBLAS)_STATUS_NOT_INITIALIZED",
    re.IGNORECASE,
)


def seed_everything(seed):
    """Seeds Python's, numpy's and MXNet's generators."""
    import numpy

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    mx.random.seed(seed)


def versions():
    """Versions of what a result depends on, for a checkpoint's description."""
    import numpy

    return {"python": sys.version.split()[0], "mxnet": mx.__version__, "numpy": numpy.__version__}


def git_commit():
    """The commit of this checkout, with "-dirty" behind it where files differ; None where there is no git."""
    root = str(Path(__file__).resolve().parents[2])
    try:
        words = ["git", "-C", root, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.check_output(words, stderr=subprocess.DEVNULL, universal_newlines=True).strip()
    except (OSError, subprocess.CalledProcessError):
        return None
