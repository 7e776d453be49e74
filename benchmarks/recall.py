"""Times recall_at_k, relative to the matrix product X X^T, the first step of a full distance matrix.

    python benchmarks/recall.py

The default size is that of the test set of Stanford Online Products; it takes minutes.
"""

import argparse
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from cgd.retrieval.recall import recall_at_k  # noqa: E402

BLOCK = 1024
KS = (1, 10, 100, 1000)
NOISE = 3.3  # standard deviation per coordinate; that of the class centres is 1. R@1 is near 0.5 at the default size


def make_data(n, dim, classes):
    """Unit vectors (n, dim) scattered around their class centres, and their labels (n,), in random order."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(n) % classes)
    centres = rng.standard_normal((classes, dim), dtype=np.float32)
    embeddings = np.empty((n, dim), np.float32)
    for start in range(0, n, BLOCK):
        rows = embeddings[start : start + BLOCK]
        rng.standard_normal(out=rows, dtype=np.float32)
        rows *= NOISE
        rows += centres[labels[start : start + BLOCK]]
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return embeddings, labels


def full_product(x):
    """Computes X X^T block by block, into the same buffer."""
    buffer = np.empty((BLOCK, BLOCK), np.float32)
    for i in range(0, len(x), BLOCK):
        for j in range(0, len(x), BLOCK):
            rows, columns = x[i : i + BLOCK], x[j : j + BLOCK]
            np.matmul(rows, columns.T, out=buffer[: len(rows), : len(columns)])


def timed(function, *args):
    start = time.perf_counter()
    result = function(*args)
    return result, time.perf_counter() - start


def peak_mib():
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes on macOS, KiB on Linux


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=60502, help="images (%(default)s)")
    parser.add_argument("--dim", type=int, default=1536, help="dimension of the embeddings (%(default)s)")
    parser.add_argument("--classes", type=int, default=11316, help="classes (%(default)s)")
    parser.add_argument("--repeats", type=int, default=1, help="repetitions; prints the median (%(default)s)")
    args = parser.parse_args()

    before = peak_mib()
    embeddings, labels = make_data(args.n, args.dim, args.classes)
    print(f"{args.n} x {args.dim}, {args.classes} classes, block {BLOCK}")
    print(f"numpy {np.__version__}, {os.cpu_count()} cores", flush=True)
    recalls, first = timed(recall_at_k, embeddings, labels, KS)
    memory = peak_mib() - before - embeddings.nbytes / 2**20
    searches, products = [first], [timed(full_product, embeddings)[1]]
    for _ in range(1, args.repeats):
        searches.append(timed(recall_at_k, embeddings, labels, KS)[1])
        products.append(timed(full_product, embeddings)[1])
    print(", ".join(f"R@{k} {recall:.4f}" for k, recall in zip(KS, recalls)))
    print(f"recall_at_k   {np.median(searches):8.1f} s")
    print(f"X X^T         {np.median(products):8.1f} s")
    print(f"ratio         {np.median(searches) / np.median(products):8.3f}")
    print(f"memory        {memory:8.0f} MiB: peak resident size, without the embeddings and the interpreter")


if __name__ == "__main__":
    main()
