"""An exact search in a file of many vectors, as cgd.search does it, beside faiss's flat index in memory.

    python benchmarks/large_search.py

Random vectors of length 1, in a temporary file: 6.1 GB by default. Each program has a process of its own, one after the
other, and searches three times; the fastest counts. "MiB of its own" leaves out pages of the file, which the system
takes back when it needs them.

pip install faiss-cpu 'numpy<2'
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from cgd.retrieval import index  # noqa: E402
from cgd.retrieval.recall import nearest  # noqa: E402
from cgd.system import errors  # noqa: E402
from cgd.system.packages import optional_package  # noqa: E402

NEIGHBOURS, CALLS = 10, 3


def blocks(count, dim):
    """Yields random vectors of length 1."""
    random = np.random.default_rng(0)
    for start in range(0, count, index.BLOCK):
        block = random.standard_normal((min(index.BLOCK, count - start), dim), dtype=np.float32)
        yield block / np.linalg.norm(block, axis=1, keepdims=True)


def this_project(file):
    vectors = np.load(file, mmap_mode="r")
    return lambda queries: nearest(queries, NEIGHBOURS, vectors)


def faiss_flat(file):
    vectors = np.load(file, mmap_mode="r")
    flat = optional_package("faiss", "faiss-cpu").IndexFlatL2(vectors.shape[1])
    for start in range(0, len(vectors), index.BLOCK):
        flat.add(np.ascontiguousarray(vectors[start : start + index.BLOCK]))
    return lambda queries: flat.search(queries, NEIGHBOURS)[1]


PROGRAMS = {"this project": this_project, "faiss IndexFlatL2": faiss_flat}


def measure(program, file, queries):
    """Prints the neighbours, the seconds of a search, and the MiB of the process's own memory."""
    search, seconds = PROGRAMS[program](file), []
    vectors = np.load(file, mmap_mode="r")
    queries = np.array(vectors[:: len(vectors) // queries][:queries])
    for _ in range(CALLS):
        start = time.perf_counter()
        found = search(queries)
        seconds.append(time.perf_counter() - start)
    own = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    print(json.dumps([found.tolist(), min(seconds), int(own.split()[1]) / 1024]))


def main():
    parser = errors.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1000000, metavar="N", help="vectors (1000000)")
    parser.add_argument("--dim", type=int, default=1536, metavar="D", help="dimensions (1536)")
    parser.add_argument("--queries", type=int, default=100, metavar="Q", help="queries (100)")
    parser.add_argument("--one", nargs=2, metavar=("PROGRAM", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measure(*options.one, options.queries)
        return
    with tempfile.TemporaryDirectory() as folder:
        file, results = f"{folder}/vectors.npy", {}
        with open(file, "wb") as opened:
            index.write_vectors(opened, (options.n, options.dim), "float32", blocks(options.n, options.dim))
        print(f"{options.n} x {options.dim}, {options.queries} queries, k = {NEIGHBOURS}\n")
        print("| program | seconds | MiB of its own | the same neighbours |\n|---|---|---|---|")
        for program in PROGRAMS:
            words = [sys.executable, __file__, "--queries", str(options.queries), "--one", program, file]
            found, seconds, own = json.loads(subprocess.check_output(words, text=True))
            results[program] = np.array(found)
            same = np.mean(results[program] == results["this project"])
            print(f"| {program} | {seconds:.2f} | {own:.0f} | {same:.4f} |", flush=True)


if __name__ == "__main__":
    errors.run(main)
