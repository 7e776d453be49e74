"""Compares the speed of this project with that of its peers: `make bench`.

    python benchmarks/compare.py                     # all: minutes to prepare, and a minute for each table
    python benchmarks/compare.py --only inference

Each program runs in a process of its own, with all cores. They take turns: in each round every one computes for
0.7 s or more while the others wait. A table shows the medians, and ratios of two programs within the same round. A
program that fails is reported and left out, and the exit code is 1 at the end. It needs the packages of
requirements-bench.txt.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE))

import networks  # noqa: E402
from contestants import END_TO_END, INFERENCE, PICTURES, TRAINING  # noqa: E402

from cgd.system import errors  # noqa: E402
from cgd.system.machine import cpu_model, usable_cores  # noqa: E402

FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
PACKAGES = ("mxnet", "torch", "onnxruntime", "openvino", "nncf", "faiss-cpu", "numpy")
SECONDS = 0.7  # of a turn, at least
MATRIX = 4096  # side of the matrices whose product is the limit
TABLES = {
    "inference": (INFERENCE, ("ResNet-50", "MobileNetV2")),
    "end to end": (END_TO_END, ("ResNet-50", "MobileNetV2")),
    "training": (TRAINING, ("ResNet-50", "MobileNetV2", "MobileNetV2, 112 px", "demo (ResNet-18, 48 px)")),
}


class Failed(Exception):
    """A program has ended, or gives no sound answer."""


class Contestant:
    """A process of contestants.py, which waits for its turns."""

    def __init__(self, title, name, folder):
        words = [sys.executable, str(HERE / "contestants.py"), title, name, str(folder)]
        environment = dict(os.environ, OMP_NUM_THREADS=str(usable_cores()))
        self.title, self.rates, self.batches = title, [], 1
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=environment
        )
        try:
            while self._read() != "ready":  # libraries print there, too
                pass
            seconds = self._seconds(1)
            if seconds < SECONDS:
                self.batches = max(1, round(SECONDS / min(self._seconds(1) for _ in range(3))))
        except Failed:
            self.close()
            raise

    def turn(self, images):
        """Measures the images per second, with `images` in a batch."""
        if self.batches > 1:
            self._seconds(1)
        self.rates.append(self.batches * images / self._seconds(self.batches))

    def close(self):
        with suppress(BrokenPipeError):  # it has ended
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.errors.close()

    def _seconds(self, batches):
        with suppress(BrokenPipeError):  # `_read` tells why
            self.process.stdin.write(f"{batches}\n")
            self.process.stdin.flush()
        answer = self._read()
        try:
            return float(answer)
        except ValueError:
            raise Failed(f"answered {answer!r} instead of the seconds")

    def _read(self):
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            self.errors.seek(0)
            raise Failed((self.errors.read().strip().splitlines() or [f"ended with exit code {code}"])[-1])
        return line.strip()


def compare(titles, name, images, folder, rounds):
    """{title: images per second in each round}. Programs that fail are reported and left out."""
    contestants = []
    for title in titles:
        print(f"{name}: starting {title}", file=sys.stderr)
        with _left_out_if_it_fails(name, title):
            contestants.append(Contestant(title, name, folder))
    for number in range(rounds):
        print(f"{name}: round {number + 1} of {rounds}", file=sys.stderr)
        for contestant in list(contestants):
            with _left_out_if_it_fails(name, contestant.title):
                try:
                    contestant.turn(images)
                except Failed:
                    contestants.remove(contestant)
                    contestant.close()
                    raise
    for contestant in contestants:
        contestant.close()
    return {contestant.title: contestant.rates for contestant in contestants}


@contextmanager
def _left_out_if_it_fails(name, title):
    try:
        yield
    except Failed as error:
        print(f"{name}: {title} is left out: {error}", file=sys.stderr, flush=True)


def table(rates, flops=None, limit=None):
    """The lines of a Markdown table. The first program is the one that the others are compared with.

    flops : of an image · limit : floating-point operations per second of a matrix product
    """
    first = next(iter(rates.values()))
    head = ["program", "images/s", f"speed of {next(iter(rates))} / its speed"]
    if flops:
        head.append("of the matrix rate")
    yield "| " + " | ".join(head) + " |"
    yield "|---" * len(head) + "|"
    for title, own in rates.items():
        rate, ratio = statistics.median(own), statistics.median(a / b for a, b in zip(first, own))
        cells = [title, f"{rate:.1f}", f"{ratio:.2f} x"]
        if flops:
            cells.append(f"{rate * flops / limit:.2f}" if "float32" in title or "as it is" in title else "")
        yield "| " + " | ".join(cells) + " |"


def matrix_rate():
    """Floating-point operations per second of a large float32 product, the best of numpy and PyTorch."""
    import torch

    torch.set_num_threads(usable_cores())
    x = np.random.RandomState(0).rand(MATRIX, MATRIX).astype(np.float32)
    y = torch.from_numpy(x)
    fastest = min(_seconds(function) for function in [lambda: x @ x, lambda: y @ y] * 5)
    return 2 * MATRIX**3 / fastest


def _seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def cpu():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((line.split(":")[1].split() for line in lines if line.startswith("flags")), [])
    known = [flag for flag in FLAGS if flag in flags]
    return f"{cpu_model()}, {usable_cores()} cores, {' '.join(known)}"


def measure(what, titles, name, folder, rounds, limit):
    """Prints the table of a network. Returns whether no program failed."""
    if not (folder / name / "counts.json").exists():
        print(f"{name}: writing the network", file=sys.stderr)
        subprocess.run([sys.executable, str(HERE / "networks.py"), name, str(folder)], check=True, stdout=sys.stderr)
    network = networks.NETWORKS[name]
    images = {"inference": network.inference_batch, "training": network.training_batch}.get(what, PICTURES)
    rates = compare(titles, name, images, folder, rounds)
    if next(iter(titles)) in rates:  # the one that the others are compared with
        flops = json.loads((folder / name / "counts.json").read_text())["flops"] if what == "inference" else None
        of = "images at a time" if what in ("inference", "training") else "image files"
        print(f"\n{what}: {name}, {network.size} px, {images} {of}\n")
        print("\n".join(table(rates, flops, limit)), flush=True)
    return len(rates) == len(titles)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=TABLES, help="one kind of table")
    parser.add_argument("--network", choices=networks.NETWORKS, help="one of the networks")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="turns of each program (default: 7)")
    parser.add_argument("--folder", type=Path, help="keep the prepared networks here (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        limit = matrix_rate()
        print(f"{cpu()}; Python {platform.python_version()}, " + ", ".join(f"{p} {version(p)}" for p in PACKAGES))
        print(f"\nA product of two {MATRIX} x {MATRIX} matrices in float32: {limit / 1e9:.0f} GFLOP/s", flush=True)
        complete = [
            measure(what, titles, name, folder, options.rounds, limit)
            for what, (titles, names) in TABLES.items()
            for name in names
            if options.only in (None, what) and options.network in (None, name)
        ]
    if not all(complete):
        sys.exit("some programs failed, see above")


if __name__ == "__main__":
    errors.run(main)
