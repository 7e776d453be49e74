"""The machine: its Python version, CPU cores and NVIDIA GPUs.

    python3 -m cgd.system.machine          # prints the requirements file for this machine

Runs before anything is installed, so it uses the standard library only.
"""

import ctypes
import importlib.util
import os
import sys
from pathlib import Path

from cgd.system.errors import InputError, run

INSTALL = "make demo installs all into .venv, and . .venv/bin/activate is for a terminal that is to use it"

OLDEST_PYTHON, NEWEST_PYTHON = (3, 8), (3, 13)

# mxnet-cu112 1.9.1 was compiled for sm_50, 60, 70, 80 and 86, without PTX: a GPU can only run code of the same major
# version and of the same or a lower minor version.
COMPILED_CAPABILITIES = ((5, 0), (6, 0), (7, 0), (8, 0), (8, 6))

# The CUDA version that the driver must support: libraries of CUDA 11.2 run with any driver for 11.0 or later.
OLDEST_CUDA = 11000
TOO_OLD = "the NVIDIA driver is too old for CUDA 11, which needs version 450.80.02 or later"


def check_python(version=sys.version_info):
    """Raises InputError unless MXNet 1.9.1 and numpy < 2 are available for this Python version."""
    if OLDEST_PYTHON <= tuple(version[:2]) <= NEWEST_PYTHON:
        return
    raise InputError(
        f"this is Python {version[0]}.{version[1]}; MXNet 1.9.1 and a compatible numpy are available for Python 3.8 to "
        "3.13 (3.8 to 3.12 without a compiler). Choose one, for example: make PYTHON=python3.12 demo"
    )


def check_packages():
    """Raises InputError if a package that all commands need is missing, as outside the environment of `make`."""
    missing = [name for name in ("numpy", "PIL", "tqdm") if not importlib.util.find_spec(name)]
    if missing:
        raise InputError(f"{missing[0]} is not installed for {sys.executable}; {INSTALL}")


def usable_cores():
    """The number of cores that this process may use, given its CPU affinity and the container's CPU quota."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        cores = os.cpu_count() or 1
    return max(1, min(cores, int(_cpu_quota())))


def _cpu_quota(folder="/sys/fs/cgroup"):
    """The container's CPU quota in cores (cgroup v2, then v1); 1e9 without a quota."""
    for names in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        try:
            words = " ".join(open(os.path.join(folder, name)).read() for name in names).split()
            quota, period = float(words[0]), float(words[1])
        except (OSError, ValueError, IndexError):  # no such file, or "max"
            continue
        if quota > 0 and period > 0:
            return max(1.0, quota / period)
    return 1e9


def cpu_model(file="/proc/cpuinfo"):
    """The name of the CPU, by Linux's list; "unknown" without one."""
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def computes_bfloat16(file="/proc/cpuinfo"):
    """Whether this CPU has instructions for bfloat16, by Linux's list. Without, oneDNN emulates them."""
    try:
        return "avx512_bf16" in Path(file).read_text().split()  # also on every CPU with AMX
    except OSError:
        return False


def open_driver():
    """The library of the NVIDIA driver, or None without a driver."""
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None


def gpu_capabilities(driver):
    """Compute capability (major, minor) of each visible GPU, in CUDA's order; [] without a driver or a GPU.

    Queries the driver, so neither MXNet nor the CUDA toolkit is needed.
    """
    count = ctypes.c_int()
    if driver is None or driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return []
    return [tuple(_attribute(driver, gpu, code) for code in (75, 76)) for gpu in range(count.value)]


def is_too_old(driver):
    """Whether the driver does not support CUDA 11."""
    version = ctypes.c_int()
    return driver.cuDriverGetVersion(ctypes.byref(version)) != 0 or version.value < OLDEST_CUDA


def _attribute(driver, gpu, code):
    """An attribute of a GPU: 75 and 76 are CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""
    device, value = ctypes.c_int(), ctypes.c_int()
    driver.cuDeviceGet(ctypes.byref(device), gpu)
    driver.cuDeviceGetAttribute(ctypes.byref(value), code, device)
    return value.value


def has_code_for(capability):
    """Whether mxnet-cu112 1.9.1 runs on a GPU of this compute capability (major, minor)."""
    return any(capability[0] == major and capability[1] >= minor for major, minor in COMPILED_CAPABILITIES)


def no_code(capability):
    """The message for a GPU for which `has_code_for` is false."""
    return (
        f"this GPU has compute capability {capability[0]}.{capability[1]}, but mxnet-cu112 1.9.1 supports only 5.0 to "
        "8.9 (Maxwell to Ada; not Hopper or later)"
    )


def main():
    check_python()
    driver = open_driver()
    capabilities = gpu_capabilities(driver)
    usable = [capability for capability in capabilities if has_code_for(capability)]
    if usable and is_too_old(driver):
        print(f"{TOO_OLD}: using the CPU build", file=sys.stderr)
    elif usable:
        print("requirements.txt")
        return
    for capability in [] if usable else capabilities:
        print(f"{no_code(capability)}: using the CPU build", file=sys.stderr)
    print("requirements-cpu.txt")


if __name__ == "__main__":
    run(main)
