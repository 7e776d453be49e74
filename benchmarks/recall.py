"""Times recall_at_k relative to the matrix product X X^T, and nearest relative to faiss, if that is installed.

    python benchmarks/recall.py
    python benchmarks/recall.py --n 8192 --repeats 5 --unclustered
    python benchmarks/recall.py --n 100000 --dim 512 --queries 2000

The default size is that of the test set of Stanford Online Products; it takes minutes. The product is the first step of
a full distance matrix. faiss (`pip install faiss-cpu 'numpy<2'`) searches a flat index, which is exhaustive too, in
float32. Everything runs in turn, and the shortest times are compared. For a fair comparison, set both
OPENBLAS_NUM_THREADS and OMP_NUM_THREADS to the number of threads.
"""

import argparse
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from cgd.retrieval.recall import nearest, recall_at_k  # noqa: E402

try:
    import faiss
except ImportError:
    faiss = None

BLOCK = 2048  # that of recall_at_k
KS = (1, 10, 100, 1000)
NEIGHBOURS = 10
NOISE = 3.3  # standard deviation per coordinate; that of the class centres is 1. R@1 is near 0.5 at the default size


def make_data(n, dim, classes, clustered=True):
    """Unit vectors (n, dim) and labels (n,), both in random order.

    The vectors are scattered around the centres of their classes, or, if not clustered, all over the sphere.
    """
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(n) % classes)
    centres = rng.standard_normal((classes, dim), dtype=np.float32)
    embeddings = np.empty((n, dim), np.float32)
    for start in range(0, n, BLOCK):
        rows = embeddings[start : start + BLOCK]
        rng.standard_normal(out=rows, dtype=np.float32)
        if clustered:
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


def contestants(embeddings, labels, queries):
    """{name: function} of what is timed; `queries` is the number of queries, None for all against all."""
    x, gallery = (embeddings, None) if queries is None else (embeddings[:queries], embeddings[queries:])
    functions = {"nearest": lambda: nearest(x, NEIGHBOURS, gallery)}
    if queries is None:
        functions["recall_at_k"] = lambda: recall_at_k(embeddings, labels, KS)
        functions["X X^T"] = lambda: full_product(embeddings)
    if faiss:
        for name in ("IndexFlatL2", "IndexFlatIP"):
            flat = getattr(faiss, name)(embeddings.shape[1])
            flat.add(embeddings if gallery is None else gallery)
            functions[name] = lambda flat=flat: flat.search(x, NEIGHBOURS)
    return functions


def peak_mib():
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes on macOS, KiB on Linux


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=60502, help="images (%(default)s)")
    parser.add_argument("--dim", type=int, default=1536, help="dimension of the embeddings (%(default)s)")
    parser.add_argument("--classes", type=int, help="classes (those of Stanford Online Products, in proportion to --n)")
    parser.add_argument("--unclustered", action="store_true", help="vectors all over the sphere, at random")
    parser.add_argument("--queries", type=int, help="search so many other vectors among the images; times nearest only")
    parser.add_argument("--repeats", type=int, default=1, help="rounds; the shortest times count (%(default)s)")
    args = parser.parse_args()
    classes = args.classes or max(1, args.n * 11316 // 60502)

    before = peak_mib()
    embeddings, labels = make_data(args.n + (args.queries or 0), args.dim, classes, not args.unclustered)
    print(f"{args.n} x {args.dim}, {classes} classes, {'un' * args.unclustered}clustered, block {BLOCK}")
    print(f"numpy {np.__version__}, {os.cpu_count()} cores, OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS')}")
    if args.queries is None:
        recalls = recall_at_k(embeddings, labels, KS)
        memory = peak_mib() - before - embeddings.nbytes / 2**20
        print(", ".join(f"R@{k} {recall:.4f}" for k, recall in zip(KS, recalls)))
        print(f"memory of recall_at_k: {memory:.0f} MiB at its peak, without the embeddings and the interpreter")
    sys.stdout.flush()

    functions = contestants(embeddings, labels, args.queries)
    times = {name: [] for name in functions}
    for _ in range(args.repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    shortest = {name: min(values) for name, values in times.items()}
    for name, seconds in shortest.items():
        print(f"{name:12} {seconds:8.2f} s")
    for name, reference in (("recall_at_k", "X X^T"), ("nearest", "IndexFlatL2"), ("nearest", "IndexFlatIP")):
        if name in shortest and reference in shortest:
            print(f"{name} / {reference}: {shortest[name] / shortest[reference]:.3f}")


if __name__ == "__main__":
    main()
