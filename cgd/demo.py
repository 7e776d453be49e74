"""Training and evaluation on the demo set, in minutes: `make demo`, or `python -m cgd.demo`.

Draws the data set, evaluates an untrained network, trains it, evaluates it on cropped and on uncropped images, and
draws retrieved neighbours. Each command is printed before it runs.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tqdm import tqdm

from cgd.data import datasets
from cgd.data.birds import draw_demo
from cgd.system import errors, files
from cgd.system.errors import InputError

ROOT = Path(__file__).resolve().parent.parent


def command(*words):
    """Prints and runs a command of the project. Exits with the command's exit code if it fails."""
    words = [str(word) for word in words]
    print(f"\n$ python {' '.join(words)}", flush=True)
    code = subprocess.call([sys.executable, *words], cwd=str(ROOT))
    if code:
        sys.exit(code)


def recalls(folder, name):
    return json.loads((folder / (name + ".json")).read_text())["recall"]


def table(columns):
    """Formats {title: {K: recall}} as a table with one column per title."""
    width = max(map(len, columns))
    lines = ["         " + "  ".join(title.rjust(width) for title in columns)]
    for k in next(iter(columns.values())):
        values = (f"{column[k]:.4f}".rjust(width) for column in columns.values())
        lines.append(f"R@{k:>4}:  {'  '.join(values)}")
    return "\n".join(lines)


def main():
    usage = "%(prog)s [flags of train.py]"
    parser = errors.Parser(prog="python -m cgd.demo", usage=usage, description=__doc__)
    for names in (("--gpu", "--gpus"), ("--num-workers",), ("--data-dir",)):  # test.py takes these too
        parser.add_argument(*names, help=argparse.SUPPRESS)
    options, flags = parser.parse_known_args()
    if not (ROOT / "train.py").exists():
        raise InputError(f"{ROOT}: has no train.py; run this in a clone of the repository")
    start = time.time()
    folder = files.new_folder(ROOT / "runs", "demo").relative_to(ROOT)
    data = os.path.abspath(options.data_dir) if options.data_dir else datasets.SOURCES["demo"].folder
    both = ["--data-dir", data] if options.data_dir else []
    both += ["--num-workers", options.num_workers] if options.num_workers else []
    on_gpus, on_gpu = (["--gpus", options.gpu], ["--gpu", options.gpu.split(",")[0]]) if options.gpu else ([], [])
    train = ["train.py", "--dataset", "demo", "--from-scratch", *both, *on_gpus, *flags]
    print(f"drawing {data}")
    draw_demo(ROOT / data, progress=tqdm)
    command(*train, "--iterations", 0, "--output-dir", folder / "untrained")
    command(*train, "--output-dir", folder / "trained")
    results = ROOT / folder
    for name, run, more in (
        ("before", "untrained", []),
        ("after", "trained", ["--save-embeddings", folder / "after.npz"]),
        ("uncropped", "trained", ["--uncropped"]),
    ):
        model = folder / run / "last"
        words = ["--pretrained-model", model, "--results", folder / (name + ".json"), *both, *on_gpu]
        command("test.py", *words, *more)
    command("-m", "cgd.gallery.sheet", folder / "after.npz", folder / "neighbours.png")
    columns = {
        "before training": recalls(results, "before"),
        "after training": recalls(results, "after"),
        "after, uncropped": recalls(results, "uncropped"),
    }
    print("\nDemo set, 50 classes not seen in training, Recall@K:\n")
    print(table(columns))
    print(f"\nTotal time: {time.time() - start:.0f} s. Queries and their nearest neighbours: {folder}/neighbours.png")


if __name__ == "__main__":
    errors.run(main)
