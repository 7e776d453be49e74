"""The machine's Python, cores and GPUs, and what is said where they do not fit."""

import importlib.abc
import importlib.machinery
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from cgd.system import environment, machine
from cgd.system.environment import mx
from cgd.system.errors import InputError
from cgd.tables import paper, runs
from cgd.training import record
from conftest import ROOT, command


@pytest.mark.parametrize("words", [["test.py"], ["train.py"], ["-m", "cgd.tables"], ["-m", "cgd.describe"]], ids=str)
def test_without_the_environment_one_line_says_so(words):
    """-S: a Python without the packages that were installed for it."""
    result = command("-S", *words, "--help")
    assert result.returncode == 2 and not result.stdout
    assert re.fullmatch(
        r"error: numpy is not installed for .*; make demo installs all into .venv, and .*\n", result.stderr
    )


class Driver:
    """Stands in for libcuda.so.1: GPUs of the given compute capabilities."""

    def __init__(self, *capabilities, ready=True, cuda=11020):
        self.capabilities, self.ready, self.cuda = capabilities, ready, cuda

    def cuDriverGetVersion(self, version):
        version._obj.value = self.cuda
        return 0

    def cuInit(self, flags):
        return 0 if self.ready else 100  # CUDA_ERROR_NO_DEVICE

    def cuDeviceGetCount(self, count):
        count._obj.value = len(self.capabilities)
        return 0

    def cuDeviceGet(self, device, number):
        device._obj.value = 10 + number  # a handle, not the number
        return 0

    def cuDeviceGetAttribute(self, value, code, device):
        value._obj.value = self.capabilities[device.value - 10][code - 75]
        return 0


def with_gpus(monkeypatch, *capabilities, **more):
    """As if this were the GPU build on a machine with these GPUs."""
    monkeypatch.setattr(machine, "open_driver", lambda: Driver(*capabilities, **more))
    features = types.SimpleNamespace(is_enabled=lambda name: name == "CUDA")
    monkeypatch.setattr(mx.runtime, "Features", lambda: features)


def test_capabilities_are_the_drivers():
    assert machine.gpu_capabilities(Driver((8, 6), (7, 5))) == [(8, 6), (7, 5)]
    assert machine.gpu_capabilities(Driver((8, 6), ready=False)) == []
    assert machine.gpu_capabilities(None) == []


@pytest.mark.parametrize("capability", [(5, 0), (5, 2), (6, 1), (7, 0), (7, 5), (8, 0), (8, 6), (8, 9)])
def test_maxwell_to_ada_have_code(capability):
    assert machine.has_code_for(capability)


@pytest.mark.parametrize("capability", [(3, 5), (9, 0), (10, 0), (12, 0)])
def test_older_and_newer_gpus_have_none(capability):
    assert not machine.has_code_for(capability)


@pytest.mark.parametrize(
    "capabilities, file",
    [([], "requirements-cpu.txt"), ([(8, 6)], "requirements.txt"), ([(9, 0)], "requirements-cpu.txt")],
)
def test_the_requirements_suit_the_machine(monkeypatch, capsys, capabilities, file):
    monkeypatch.setattr(machine, "open_driver", lambda: Driver(*capabilities))
    machine.main()
    assert capsys.readouterr().out.strip() == file


@pytest.mark.parametrize("cuda, file", [(10020, "requirements-cpu.txt"), (11000, "requirements.txt")])
def test_a_driver_that_is_too_old_gets_the_cpu_build(monkeypatch, capsys, cuda, file):
    monkeypatch.setattr(machine, "open_driver", lambda: Driver((7, 0), cuda=cuda))
    machine.main()
    out, err = capsys.readouterr()
    assert out.strip() == file and ("driver is too old" in err) == (cuda < 11000)


def test_other_pythons_are_told_before_anything_is_installed():
    for version in [(3, 7, 9), (3, 14, 0), (2, 7, 18)]:
        with pytest.raises(InputError, match="3.8 to 3.13"):
            machine.check_python(version)
    for version in [(3, 8, 0), (3, 13, 9)]:
        machine.check_python(version)


def test_the_check_needs_nothing_installed():
    """Isolated from site-packages, as on a fresh machine."""
    result = command("-S", "-m", "cgd.system.machine")
    assert result.returncode == 0 and result.stdout.strip().startswith("requirements")


@pytest.mark.parametrize(
    "files, cores",
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, 1e9),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1e9),
        ({}, 1e9),
    ],
)
def test_a_containers_quota_counts(tmp_path, files, cores):
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert machine._cpu_quota(str(tmp_path)) == cores


def test_the_cpus_name_is_that_of_its_list(tmp_path):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: A CPU @ 2: GHz\n\nmodel name\t: another\n")
    assert machine.cpu_model(str(tmp_path / "cpuinfo")) == "A CPU @ 2: GHz"
    assert machine.cpu_model(str(tmp_path / "missing")) == "unknown"


def test_the_cpus_list_says_whether_it_computes_bfloat16(tmp_path):
    file = tmp_path / "cpuinfo"
    for flags, expected in (("avx512f avx512_bf16 xsaves", True), ("avx512f avx512_bf16_not", False)):
        file.write_text(f"processor\t: 0\nflags\t\t: fpu {flags}\n\n")
        assert machine.computes_bfloat16(str(file)) is expected
    assert not machine.computes_bfloat16(str(tmp_path / "missing"))


def test_numpy_2_is_told(monkeypatch):
    for version in ("2.0.0", "2.4.6", "10.1"):
        monkeypatch.setattr(np, "__version__", version)
        with pytest.raises(InputError, match="this is numpy {}, .*pip install 'numpy<2'".format(version)):
            environment._import_mxnet()


def after_the_import(code, *words, **variables):
    """What this code prints in a new process that has imported MXNet, with these words and variables."""
    ours = ("OMP_NUM_THREADS", "NVIDIA_TF32_OVERRIDE", "DNNL_MAX_CPU_ISA")
    environ = {name: value for name, value in os.environ.items() if name not in ours}
    call = [sys.executable, "-c", "import os, cgd.system.environment as environment; " + code, *words]
    environ.update(variables)
    return subprocess.check_output(call, cwd=str(ROOT), env=environ, text=True, timeout=200).split()


def test_threads_tf32_and_amx_are_set_by_the_import():
    """And in a process that will be the scheduler of a cluster, it does not begin to serve."""
    has_it = "amx_tile" in Path("/proc/cpuinfo").read_text()
    code = "print(*map(os.environ.get, ('OMP_NUM_THREADS', 'NVIDIA_TF32_OVERRIDE', 'DNNL_MAX_CPU_ISA')),"
    code += "environment.tf32_allowed(), environment._allow_amx(), environment.DMLC_ROLE, os.environ.get('DMLC_ROLE'))"
    threads, override, isa, tf32_allowed, has_amx, *role = after_the_import(code)
    assert (threads, override, tf32_allowed, role) == (str(machine.usable_cores()), "0", "False", ["None", "None"])
    assert isa == ("AVX512_CORE_AMX" if has_amx == "True" else "None") and (has_it or has_amx == "False")
    told = after_the_import(code, "--tf32", OMP_NUM_THREADS="7", DNNL_MAX_CPU_ISA="AVX2", DMLC_ROLE="scheduler")
    assert told == ["7", "None", "AVX2", "True", "False", "scheduler", "scheduler"]


def test_amx_is_allowed_where_the_kernel_grants_it_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.setattr(environment, "ASK_FOR_AMX", (24,))  # sched_yield, which every kernel grants
    for isa, allowed in (("AVX2", False), ("ALL", False), ("avx512_core_amx", True)):
        monkeypatch.setenv("DNNL_MAX_CPU_ISA", isa)
        assert environment._allow_amx() is allowed and os.environ["DNNL_MAX_CPU_ISA"] == isa
    monkeypatch.delenv("DNNL_MAX_CPU_ISA")
    assert environment._allow_amx() and os.environ["DNNL_MAX_CPU_ISA"] == "AVX512_CORE_AMX"
    monkeypatch.delenv("DNNL_MAX_CPU_ISA")
    monkeypatch.setattr(environment, "ASK_FOR_AMX", (-1,))  # a call that the kernel does not know
    assert not environment._allow_amx() and "DNNL_MAX_CPU_ISA" not in os.environ


def test_all_usable_cores_are_used_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    environment._use_all_cores()
    assert os.environ["OMP_NUM_THREADS"] == "1"
    monkeypatch.delenv("OMP_NUM_THREADS")
    environment._use_all_cores()
    assert os.environ["OMP_NUM_THREADS"] == str(machine.usable_cores())
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    environment._use_all_cores()
    assert os.environ["OMP_NUM_THREADS"] == str(machine.usable_cores())


@pytest.mark.parametrize("value", ["all", "2,1", "0", "-1", "1.5"])
def test_threads_that_are_no_number_are_told(monkeypatch, value):
    """MXNet itself would end the process, or onnxruntime take another number."""
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    with pytest.raises(InputError, match=f"OMP_NUM_THREADS is '{value}'; expected a whole number"):
        environment._use_all_cores()


def test_a_program_that_imports_cgd_can_catch_what_is_wrong_with_its_environment():
    code = "import cgd\ntry:\n    cgd.load\nexcept cgd.InputError as error:\n    print('caught', error)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=str(ROOT),
        env=dict(os.environ, OMP_NUM_THREADS="all"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.startswith("caught the variable OMP_NUM_THREADS is 'all'"), done.stderr


@pytest.mark.parametrize(
    "word, before, after, allowed",
    [
        ("", None, "0", False),
        ("--tf3", None, "0", False),
        ("", "1", "1", True),
        ("--tf32", None, None, True),
        ("--tf32", "0", None, True),
        ("--tf32", "1", "1", True),
    ],
)
def test_tf32_is_forbidden_unless_the_user_says_otherwise(monkeypatch, word, before, after, allowed):
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", before or "")
    if before is None:
        monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    monkeypatch.setattr(sys, "argv", ["train.py", word])
    environment._forbid_tf32()
    assert os.environ.get("NVIDIA_TF32_OVERRIDE") == after
    assert environment.tf32_allowed() == allowed


class Imports(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands in for MXNet: adds its import to `steps`."""

    def __init__(self, monkeypatch, steps):
        self.steps = steps
        monkeypatch.delitem(sys.modules, "mxnet")
        monkeypatch.setattr(sys, "meta_path", [self, *sys.meta_path])

    def find_spec(self, name, path, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name == "mxnet" else None

    def exec_module(self, module):
        self.steps.append("import mxnet")


def test_tf32_is_forbidden_before_any_library_is_loaded(monkeypatch):
    steps = []
    Imports(monkeypatch, steps)
    for name in ("_forbid_tf32", "_load_cuda_wheels"):
        monkeypatch.setattr(environment, name, lambda name=name: steps.append(name))
    environment._import_mxnet()
    assert steps == ["_forbid_tf32", "_load_cuda_wheels", "import mxnet"]


def test_the_flag_for_tf32_is_train_pys_and_cannot_be_shortened(here):
    for words in (["train.py", "--tf3"], ["test.py", "--pretrained-model", "x", "--tf32"]):
        result = here(*words)
        assert result.returncode == 2 and "unrecognized arguments: " + words[-1] in result.stderr


def test_a_run_with_tf32_is_not_resumed_without(tmp_path):
    for before, now in ((True, False), (False, True)):
        with pytest.raises(InputError, match=r"other precision \(--tf32\)"):
            record.check({"tf32_allowed": before}, {"tf32_allowed": now})
    record.check({"tf32_allowed": True}, {"tf32_allowed": True})
    job = runs.Study(tmp_path, "demo", ("--tf32",)).job(paper.TABLES["1"].rows[0], 0)
    assert "--tf32" in job.command(0) and "--tf32" in job.resume(0)
    job = runs.Study(tmp_path, "demo").job(paper.TABLES["1"].rows[0], 0)
    assert "--tf32" not in job.resume(0)


def test_gpu_minus_1_is_the_cpu():
    assert environment.context(-1) == mx.cpu()


def test_gpu_0_falls_back_to_the_cpu_and_says_so(monkeypatch, capsys):
    with_gpus(monkeypatch)
    assert environment.context(0) == environment.context(0) == mx.cpu()
    assert capsys.readouterr().err.count("running on the CPU") == 1


def test_a_gpu_with_code_is_taken(monkeypatch):
    with_gpus(monkeypatch, (9, 0), (8, 6))
    assert environment.context(1) == mx.gpu(1)


def test_a_gpu_without_code_is_an_error(monkeypatch):
    with_gpus(monkeypatch, (9, 0))
    with pytest.raises(InputError, match=r"9\.0.*--gpu -1"):
        environment.context(0)


def test_a_gpu_beside_one_that_has_code_is_told_of_it(monkeypatch):
    with_gpus(monkeypatch, (12, 0), (8, 6))
    with pytest.raises(InputError, match=r"12\.0.*; --gpu 1 has one that is supported, and --gpu -1 uses the CPU"):
        environment.context(0)


def test_a_driver_that_is_too_old_is_an_error(monkeypatch):
    with_gpus(monkeypatch, (7, 0), cuda=10020)
    with pytest.raises(InputError, match=r"--gpu 0: the NVIDIA driver is too old .* 450\.80\.02"):
        environment.context(0)


def test_a_gpu_that_is_not_there_is_an_error(monkeypatch):
    with_gpus(monkeypatch, (8, 6))
    with pytest.raises(InputError, match="--gpu 7: 1 GPU"):
        environment.context(7)


def test_the_linkers_complaint_becomes_one_line():
    told = environment._explain(OSError("libcuda.so.1: cannot open shared object file: No such file or directory"))
    assert "requirements-cpu.txt" in told and "driver" in told
    told = environment._explain(OSError("libcudnn.so.8: cannot open shared object file: No such file"))
    assert "nvidia-cudnn-cu11" in told
    told = environment._explain(OSError("libgomp.so.1: cannot open shared object file: No such file"))
    assert "libgomp.so.1" in told
    told = environment._explain(OSError("/x/nvidia/cublas/lib/libcublas.so.11: file too short"))
    assert (
        "libcublas.so.11 of the wheel nvidia-cublas-cu11 cannot be loaded (file too short): pip install --force" in told
    )
    assert "wrong ELF class" in environment._explain(OSError("libmxnet.so: wrong ELF class"))


@pytest.mark.parametrize("error", [MemoryError(), MemoryError("Unable to allocate 945. MiB for an array")])
def test_numpys_memory_is_memory_too(error):
    with pytest.raises(InputError, match="out of memory; give fewer"):
        with environment.memory_for("give fewer"):
            raise error


def test_every_cuda_wheel_is_required_and_every_required_one_is_loaded():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    required = {line.split("<")[0] for line in lines if line.startswith("nvidia-")}
    assert required == set(environment.CUDA_LIBRARIES.values())


def test_cuda_wheels_are_loaded_before_the_import(monkeypatch, tmp_path):
    """The libraries of an `nvidia` package are opened for all to see, in the table's order; other files are left."""
    steps = []
    Imports(monkeypatch, steps)
    for name in ("cudnn/lib/libcudnn.so.8", "cublas/lib/libcublas.so.11", "cublas/lib/libnvblas.so.11"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    spec = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(environment.ctypes, "CDLL", lambda path, mode: steps.append((path.rsplit("/", 1)[1], mode)))
    environment._import_mxnet()
    everyone = environment.ctypes.RTLD_GLOBAL
    assert steps == [("libcublas.so.11", everyone), ("libcudnn.so.8", everyone), "import mxnet"]


def test_a_broken_cuda_wheel_is_one_line(monkeypatch, tmp_path):
    Imports(monkeypatch, [])
    file = tmp_path / "cublas" / "lib" / "libcublas.so.11"
    file.parent.mkdir(parents=True)
    file.write_text("half of a file")
    spec = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(InputError, match="libcublas.so.11 of the wheel nvidia-cublas-cu11 cannot be loaded"):
        environment._import_mxnet()


def test_the_commit_is_of_this_project_only(monkeypatch, tmp_path):
    """Not of a repository that it was installed into."""
    for words in (["init"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "--allow-empty", "-m", "other"]):
        subprocess.check_call(
            ["git", "-C", str(tmp_path), *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    for root, found in ((tmp_path, True), (tmp_path / "lib" / "site-packages", False)):
        (root / "cgd" / "system").mkdir(parents=True)
        monkeypatch.setattr(environment, "__file__", str(root / "cgd" / "system" / "environment.py"))
        assert bool(environment.git_commit()) == found


def test_seeding_makes_runs_equal():
    draws = []
    for _ in range(2):
        environment.seed_everything(3)
        draws.append((mx.nd.random.uniform(shape=3).asnumpy().tolist(), np.random.rand()))
    assert draws[0] == draws[1]
