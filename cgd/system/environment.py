"""Imports MXNet on current Python versions; its devices, threads and seeds.

Every module imports MXNet from here (`from cgd.system.environment import mx`), because this file does all that must
happen before that import. It takes more than a second: commands parse their arguments first, and import modules that
need MXNet in `main`. One flag, --tf32, takes effect with the import: see `_forbid_tf32`.
"""

import ctypes
import functools
import importlib
import importlib.util
import os
import platform
import random
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from cgd.system import machine
from cgd.system.errors import InputError

# The CUDA 11 libraries that libmxnet.so of mxnet-cu112 links to but does not include, and the wheels that contain them,
# in the order of their dependencies. cuDNN loads its parts by name when they are needed.
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

ASK_FOR_AMX = (158, 0x1023, 18)  # the system call arch_prctl: ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
WITH_AMX = "AVX512_CORE_AMX"  # the only value of DNNL_MAX_CPU_ISA that lets oneDNN 2.4 use it

TF32_FLAG, TF32_VARIABLE = "--tf32", "NVIDIA_TF32_OVERRIDE"


def _check_numpy():
    """Raises InputError for numpy 2, which pip installs with a package that asks for it."""
    import numpy

    if int(numpy.__version__.partition(".")[0]) >= 2:
        raise InputError(f"this is numpy {numpy.__version__}, but MXNet 1.9.1 needs numpy 1: pip install 'numpy<2'")


def _restore_numpy_names():
    """MXNet 1.9.1 uses numpy.bool and similar aliases, which numpy 1.24 removed."""
    import numpy

    for name, builtin in (("bool", bool), ("int", int), ("float", float), ("complex", complex), ("object", object)):
        if name not in vars(numpy):
            setattr(numpy, name, builtin)


def _restore_distutils():
    """MXNet 1.9.1 imports distutils, which Python 3.12 removed; importing setuptools first restores it."""
    if sys.version_info >= (3, 12):
        import setuptools  # noqa: F401


def _use_all_cores():
    """MXNet assumes hyper-threading and uses half of the cores by default. It reads OMP_NUM_THREADS when imported.

    An empty value counts as none. Raises InputError for one that would end MXNet, or that onnxruntime does not take.
    """
    threads = os.environ.get("OMP_NUM_THREADS") or str(machine.usable_cores())
    if not (threads.isdecimal() and int(threads)):
        raise InputError(
            f"the variable OMP_NUM_THREADS is {threads!r}; expected a whole number of threads, or unset it"
        )
    os.environ["OMP_NUM_THREADS"] = threads


def _forbid_tf32():
    """Disables TF32 on Ampere and Ada GPUs, where cuDNN 8 by default rounds inputs of convolutions to TF32 (10 bits).

    NVIDIA_TF32_OVERRIDE=0 disables it in all NVIDIA libraries. They read it when they are loaded, that is with
    MXNet, so --tf32, a flag of train.py, is looked up in sys.argv; errors.Parser does not accept abbreviations of it. A
    value that the user has set is kept, except that --tf32 removes a 0.
    """
    if TF32_FLAG not in sys.argv:
        os.environ.setdefault(TF32_VARIABLE, "0")
    elif not tf32_allowed():
        del os.environ[TF32_VARIABLE]


def tf32_allowed():
    """Whether NVIDIA's libraries may use TF32, on GPUs that support it."""
    return os.environ.get(TF32_VARIABLE) != "0"


def _allow_amx():
    """Lets oneDNN 2.4 use AMX, the matrix unit of Intel's CPUs since 2023, for bfloat16 and int8; float32 has none.

    Linux gives the unit's registers only to programs that ask for them, and this oneDNN neither asks nor uses it unless
    it is told to. Returns whether oneDNN may use it: the machine has it, and the user has not set another limit.
    """
    granted = platform.machine() == "x86_64" and ctypes.CDLL(None).syscall(*ASK_FOR_AMX) == 0
    return granted and os.environ.setdefault("DNNL_MAX_CPU_ISA", WITH_AMX).upper() == WITH_AMX


def _load_cuda_wheels():
    """Loads the CUDA libraries of the nvidia-*-cu11 wheels with global symbols, so that libmxnet.so finds them."""
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(folder) for folder in spec.submodule_search_locations] if spec else []
    for library in CUDA_LIBRARIES:
        for path in (path for folder in folders for path in folder.glob("*/lib/" + library)):
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


def _explain(error):
    """Explains an error of the dynamic linker in one line: the missing wheel, or the build for this machine."""
    broken = re.search(r"(lib[\w.+-]+\.so[\w.]*): (.*)", str(error))
    library = broken.group(1) if broken else ""
    if not broken or "cannot open shared object file" not in broken.group(2):
        if library in CUDA_LIBRARIES:
            advice = "pip install --force-reinstall -r requirements.txt"
            return f"{library} of the wheel {CUDA_LIBRARIES[library]} cannot be loaded ({broken.group(2)}): {advice}"
        return f"MXNet cannot be loaded: {error}"
    if library == "libcuda.so.1":
        return (
            "this is MXNet's GPU build, but no NVIDIA driver is installed (libcuda.so.1). Install a driver, or use the "
            "CPU build: pip uninstall -y mxnet-cu112, then pip install -r requirements-cpu.txt"
        )
    if library in CUDA_LIBRARIES:
        return f"MXNet needs {library} of the wheel {CUDA_LIBRARIES[library]}: pip install -r requirements.txt"
    return f"MXNet needs the system library {library}, which is not installed"


def _import_mxnet():
    machine.check_python()
    machine.check_packages()
    _check_numpy()
    _restore_numpy_names()
    _restore_distutils()
    _use_all_cores()
    _forbid_tf32()
    os.environ.setdefault("MXNET_SUBGRAPH_VERBOSE", "0")  # no line for each graph that oneDNN fuses
    for name in ("MXNET_HOME", "MXNET_GLUON_REPO"):  # empty is unset, as for download.sh
        if os.environ.get(name) == "":
            del os.environ[name]
    try:
        _load_cuda_wheels()
        with _without_role():
            import mxnet
    except ImportError as error:
        raise InputError(f"MXNet cannot be imported ({error}); {machine.INSTALL}")
    except OSError as error:
        raise InputError(_explain(error))
    return mxnet


# The role of this process in distributed training (cgd/training/cluster.py), or None.
DMLC_ROLE = os.environ.get("DMLC_ROLE")


@contextmanager
def _without_role():
    """Hides DMLC_ROLE: in a scheduler or server process, importing MXNet would start serving and never return."""
    os.environ.pop("DMLC_ROLE", None)
    try:
        yield
    finally:
        if DMLC_ROLE is not None:
            os.environ["DMLC_ROLE"] = DMLC_ROLE


_allow_amx()
mx = _import_mxnet()


def context(gpu):
    """The device for `--gpu`: mx.gpu(gpu), or mx.cpu() for a negative number.

    GPU 0, the default, falls back to the CPU, with a message, if no GPU is found.
    Raises InputError for any other GPU that does not exist, and for a GPU that MXNet does not support.
    """
    built_with_cuda = mx.runtime.Features().is_enabled("CUDA")
    capability = find_gpu(gpu, "" if built_with_cuda else "this is MXNet's CPU build")
    if capability is None:
        return mx.cpu()
    driver = machine.open_driver()
    if machine.is_too_old(driver):
        raise InputError(f"--gpu {gpu}: {machine.TOO_OLD}; update it, or use --gpu -1 for the CPU")
    if not machine.has_code_for(capability):
        others = [n for n, other in enumerate(machine.gpu_capabilities(driver)) if machine.has_code_for(other)]
        advice = "".join(f"--gpu {other} has one that is supported, and " for other in others[:1])
        raise InputError(f"--gpu {gpu}: {machine.no_code(capability)}; {advice}--gpu -1 uses the CPU")
    return mx.gpu(gpu)


def find_gpu(gpu, no_cuda):
    """The compute capability of the GPU for `--gpu`, or None for the CPU, as `context` chooses.

    no_cuda : why the runtime cannot use a GPU, for messages; "" if it can
    """
    if gpu < 0:
        return None
    capabilities = [] if no_cuda else machine.gpu_capabilities(machine.open_driver())
    if gpu < len(capabilities):
        return capabilities[gpu]
    found = no_cuda or f"{len(capabilities)} GPU(s) found"
    if gpu > 0:
        raise InputError(f"--gpu {gpu}: {found}; use --gpu -1 for the CPU")
    _say_once(f"{found}: running on the CPU ({os.environ['OMP_NUM_THREADS']} thread(s))")
    return None


@functools.lru_cache(maxsize=None)
def _say_once(text):
    """Prints a notice to standard error, once in a process, however many networks it opens."""
    print(text, file=sys.stderr)


@contextmanager
def memory_for(advice):
    """Context manager that turns out-of-memory errors into an InputError that ends with `advice`.

    They have the message of the allocator, CUDA or cuDNN, or are a MemoryError, as those of numpy. MXNet raises them as
    an MXNetError when a result is waited for, onnxruntime as one of its own types.
    """
    try:
        yield
    except Exception as error:
        found = isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error))
        if isinstance(error, InputError) or not found:
            raise
        raise InputError(f"out of memory; {advice}")


@contextmanager
def large_enough(size):
    """Context manager that turns MXNet's error for images, of `size` (W, H), that a network shrinks to nothing."""
    try:
        yield
    except mx.base.MXNetError as error:
        if "exceeds input" not in str(error):
            raise
        advice = "give a larger --image-width and --image-height"
        raise InputError("images of {} x {} pixels are too small for this network; {}".format(*size, advice))


_OUT_OF_MEMORY = re.compile(
    "out of memory|failed to allocate|allocation failed|ALLOC_FAILED|bad_alloc"
    "|failed to find any .* convolution algorithm|(CUDNN|CUBLAS)_STATUS_NOT_INITIALIZED",
    re.IGNORECASE,
)


def seed_everything(seed):
    """Seeds the random number generators of Python, numpy and MXNet."""
    import numpy

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    mx.random.seed(seed)


def versions():
    """The library versions that results depend on, for the description of a checkpoint."""
    import numpy

    return {"python": sys.version.split()[0], "mxnet": mx.__version__, "numpy": numpy.__version__}


def git_commit():
    """The git commit of this checkout, with the suffix "-dirty" if files were modified; None without git.

    None also where the project was installed into a folder of another repository.
    """
    root = Path(__file__).resolve().parents[2]

    def git(*words):
        words = ["git", "-C", str(root), *words]
        return os.fsdecode(subprocess.check_output(words, stderr=subprocess.DEVNULL)).strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None
