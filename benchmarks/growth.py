"""How cost grows: with the number of images, the size of a batch and the size of the images. `--plot FILE` draws it.

    python benchmarks/growth.py --plot figures/growth.png
    python benchmarks/growth.py --only search

Each measurement runs in a process of its own, whose peak memory is given, too. `describing` extracts descriptors of
image files with MobileNetV2 at 112 pixels, as test.py does; `search` is Recall@1, 10, 100 and 1000 of random unit
vectors of 512 dimensions among themselves; `large search` finds the 10 nearest of 100 queries among vectors in a file;
`training` is a step of MobileNetV2 with random pictures.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE))

from cgd.tables.plots import figure_of  # noqa: E402

DIM, KS, NEIGHBOURS, QUERIES = 512, (1, 10, 100, 1000), 10, 100
FILES = 256  # image files; larger sets repeat them
SIZES = {
    "describing": (1000, 4000, 16000),
    "search": (2000, 8000, 30000, 60000),
    "large search": (60000, 250000, 1000000),
    "training": ((16, 112), (32, 112), (64, 112), (128, 112), (32, 80), (32, 160), (32, 224)),
}
UNITS = {"describing": "images", "search": "images", "large search": "vectors", "training": "batch, pixels"}


def describing(count, folder):
    import networks

    from cgd.network import checkpoints, model
    from cgd.retrieval.evaluation import Extractor, Preprocessing
    from cgd.system.environment import mx
    from cgd.system.machine import usable_cores

    records = networks.draw(folder / "pictures", FILES)
    records = (records * -(-count // FILES))[:count]
    extractor = Extractor(records, Preprocessing((112, 112), (0.5,) * 3, (0.25,) * 3), 32, usable_cores())
    net = model.CGD(dim=DIM, backbone="mobilenetv2_1.0")
    net.infer_shape(mx.nd.zeros((1, 3, 112, 112)))
    net.initialize()
    embed = checkpoints.inference(net, mx.cpu(), (112, 112))
    embed(mx.nd.zeros((32, 3, 112, 112))).wait_to_read()
    return lambda: extractor(embed, mx.cpu(), quiet=True)


def search(count, folder):
    from cgd.retrieval.recall import recall_at_k

    x, labels = _unit_vectors(count), np.arange(count) % (count // 5)
    return lambda: recall_at_k(x, labels, KS)


def large_search(count, folder):
    from cgd.retrieval.recall import nearest

    file = folder / f"{count}.npy"
    gallery = np.lib.format.open_memmap(str(file), "w+", np.float32, (count, DIM))
    for first in range(0, count, 10000):
        gallery[first : first + 10000] = _unit_vectors(min(10000, count - first), first)
    gallery.flush()
    del gallery
    return lambda: nearest(_unit_vectors(QUERIES, -1), NEIGHBOURS, np.load(str(file), mmap_mode="r"))


def training(shape, folder):
    from contestants import cgd_step
    from networks import Network

    class Files:
        network = Network("mobilenetv2_1.0", DIM, shape[1], 0, shape[0])

    step = cgd_step(Files)
    step()
    return step


MEASURED = {"describing": describing, "search": search, "large search": large_search, "training": training}


def _unit_vectors(count, seed=0):
    x = np.random.default_rng(seed + 1).standard_normal((count, DIM), dtype=np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def measure(what, size, folder):
    """Prints the seconds of a call, the fastest of several, and the peak memory of the process in MiB."""
    run = MEASURED[what](size, folder)
    before, seconds = time.perf_counter(), []
    while not seconds or (time.perf_counter() - before < 5 and len(seconds) < 5):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps([min(seconds), peak]))


def plot(results, file):
    figure = figure_of(10, 8)
    for axes, (what, rows) in zip(figure.subplots(2, 2).flat, results.items()):
        axes.set_title(what)
        if what == "training":
            for label, place in (("pixels at batches of 32", 1), ("images in a batch at 112 pixels", 0)):
                chosen = sorted((size[place], row[0]) for size, row in rows if size[1 - place] == (32, 112)[1 - place])
                axes.plot(*zip(*chosen), marker="o", label=label)
            axes.legend()
        else:
            axes.plot([size for size, _ in rows], [row[0] for _, row in rows], marker="o")
            axes.set_xlabel(UNITS[what])
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(axes.lines[0].get_xdata(), map(str, axes.lines[0].get_xdata()))
        axes.xaxis.set_minor_formatter("")
        axes.yaxis.set_minor_formatter("")
        axes.set_ylabel("seconds")
        axes.grid(alpha=0.3)
    figure.savefig(file)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SIZES)
    parser.add_argument("--plot", metavar="FILE", help="draw the measurements; needs matplotlib")
    parser.add_argument("--one", nargs=3, metavar=("WHAT", "SIZE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return measure(options.one[0], json.loads(options.one[1]), Path(options.one[2]))
    if options.plot:
        figure_of(1, 1)  # stops before the measurements if matplotlib is missing
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for what in [options.only] if options.only else SIZES:
            print(f"\n| {what}: {UNITS[what]} | seconds | microseconds each | MiB |\n|---|---|---|---|")
            rows = results.setdefault(what, [])
            for size in SIZES[what]:
                words = [sys.executable, __file__, "--one", what, json.dumps(size), folder]
                seconds, peak = json.loads(subprocess.check_output(words, text=True).splitlines()[-1])
                rows.append((size, (seconds, peak)))
                count, name = (size[0], "{} x {}".format(*size)) if what == "training" else (size, f"{size:,}")
                print(f"| {name} | {seconds:.3g} | {1e6 * seconds / count:.1f} | {peak:.0f} |", flush=True)
    if options.plot:
        plot(results, options.plot)


if __name__ == "__main__":
    main()
