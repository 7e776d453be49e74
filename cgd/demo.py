"""The whole story in minutes, on the demo set: `make demo`, or `python -m cgd.demo`.

Draws the pictures, evaluates an untrained network, trains it, evaluates it again, on crops and on whole pictures, and
draws what it retrieves. Each step is a plain command, printed before it runs.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

from tqdm import tqdm

from cgd.data import datasets
from cgd.data.birds import draw_demo
from cgd.system import errors

ROOT = Path(__file__).resolve().parent.parent


def command(*words):
    """Runs a command of the project and shows it first. Ends with the command's own exit code if it fails."""
    print("\n$ python {}".format(" ".join(map(str, words))), flush=True)
    code = subprocess.call([sys.executable, *map(str, words)], cwd=str(ROOT))
    if code:
        sys.exit(code)


def recalls(folder, name):
    return json.loads((folder / (name + ".json")).read_text())["recall"]


def free_folder():
    """The next of runs/demo-1, runs/demo-2, ... that is not there yet."""
    names = (Path(f"runs/demo-{number}") for number in range(1, 10**6))
    return next(name for name in names if not (ROOT / name).exists())


def table(columns):
    """{title: {K: recall}} -> the recalls side by side."""
    width = max(map(len, columns))
    lines = ["         " + "  ".join(title.rjust(width) for title in columns)]
    for k in next(iter(columns.values())):
        figures = (f"{column[k]:.4f}".rjust(width) for column in columns.values())
        lines.append("R@{:>4}:  {}".format(k, "  ".join(figures)))
    return "\n".join(lines)


def main():
    start = time.time()
    folder = free_folder()
    train = ["train.py", "--dataset", "demo", "--from-scratch", *sys.argv[1:]]
    print("drawing {}".format(datasets.SOURCES["demo"].folder))
    draw_demo(ROOT / datasets.SOURCES["demo"].folder, progress=tqdm)
    command(*train, "--iterations", 0, "--output-dir", folder / "untrained")
    command(*train, "--output-dir", folder / "trained")
    figures = ROOT / folder
    for name, run, more in (
        ("before", "untrained", []),
        ("after", "trained", ["--save-embeddings", folder / "after.npz"]),
        ("uncropped", "trained", ["--uncropped"]),
    ):
        model = folder / run / "last"
        command("test.py", "--pretrained-model", model, "--results", folder / (name + ".json"), *more)
    command("-m", "cgd.retrieval.sheet", folder / "after.npz", folder / "neighbours.png")
    columns = {
        "before training": recalls(figures, "before"),
        "after training": recalls(figures, "after"),
        "after, uncropped": recalls(figures, "uncropped"),
    }
    print("\nDemo set, 50 kinds of birds that were never seen in training, R@K:\n")
    print(table(columns))
    print(f"\n{time.time() - start:.0f} s in all. Queries and what they retrieve: {folder}/neighbours.png")


if __name__ == "__main__":
    errors.run(main)
