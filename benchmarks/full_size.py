"""Dry run at full size: data sets of the official sizes, with drawn images instead of photographs.

    python benchmarks/full_size.py cub200 --annotations CUB_200_2011 --lists LISTS
    python benchmarks/full_size.py sop
    python benchmarks/full_size.py inshop

cub200 uses CUB's official annotation files, and optionally the authors' train.txt, test.txt and bbox.txt (--lists);
each image is just large enough for its box. The lists of the other data sets are generated in the official format, with
the official counts. test.py then evaluates a network with random weights on the full test split. Prints the time and
the memory of the largest process; the recalls have no meaning.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cgd.data import annotations, datasets  # noqa: E402
from cgd.network import checkpoints, model  # noqa: E402
from cgd.system.environment import mx  # noqa: E402

# Loads a data set in a new process, as a command does, and prints the time and memory used.
LOAD = """
import json, sys, time
from cgd.data import datasets
def mib():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20
before, start = mib(), time.time()
dataset = datasets.load(*sys.argv[1:])
seconds = time.time() - start
splits = [len(dataset.train), len(dataset.test), len(dataset.gallery or [])]
print(json.dumps([splits, seconds, mib() - before]))
"""


def draw_cub(folder, annotation_folder):
    """Copies CUB's annotation files, and draws an image for each line of images.txt: an ellipse in its box."""
    for name in ("images.txt", "image_class_labels.txt", "bounding_boxes.txt"):
        shutil.copy(str(annotation_folder / name), str(folder / name))
    boxes = annotations.read_boxes(folder / "bounding_boxes.txt")
    for image_id, (_, name) in annotations.read_numbered(folder / "images.txt").items():
        x, y, w, h = boxes[image_id]
        image = Image.new("RGB", (x + w, y + h), (image_id % 256, image_id // 256, 128))
        ImageDraw.Draw(image).ellipse((x, y, x + w, y + h), fill=(255 - image_id % 256, 90, image_id % 199))
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(str(path))


def draw_sop(folder):
    """Writes lists in SOP's format and of its size, and a tiny image for each line."""
    data = tiny_image(folder)
    image_id = 0
    for split, first in (("train", 1), ("test", 11319)):
        classes, images = datasets.SOURCES["sop"].counts[split]
        rows = ["image_id class_id super_class_id path"]
        for number in range(images):
            image_id += 1
            label = first + number * classes // images
            path = f"kind{label % 12:02d}_final/{110000000000 + label}_{number}.JPG"
            rows.append(f"{image_id} {label} {label % 12 + 1} {path}")
            write(data, folder / path)
        (folder / f"Ebay_{split}.txt").write_text("\n".join(rows) + "\n")


def draw_inshop(folder):
    """Writes a list in In-shop's format and of its size, and a tiny image for each line."""
    data = tiny_image(folder)
    counts = {"train": "train", "query": "test", "gallery": "gallery"}
    rows = []
    for status, split in counts.items():
        classes, images = datasets.SOURCES["inshop"].counts[split]
        for number in range(images):
            item = number * classes // images + (0 if split == "train" else 4000)
            path = f"img/WOMEN/Dresses/id_{item:08d}/{status}_{number}_front.jpg"
            rows.append(f"{path}  id_{item:08d}  {status}")
            write(data, folder / path)
    head = [str(len(rows)), "image_name item_id evaluation_status"]
    (folder / "list_eval_partition.txt").write_text("\n".join(head + rows) + "\n")


def tiny_image(folder):
    Image.new("RGB", (16, 16), (200, 120, 40)).save(str(folder / "tiny.jpg"))
    return (folder / "tiny.jpg").read_bytes()


def write(data, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def random_network(prefix, options):
    net = model.CGD("MG", options.dim, options.backbone)
    net.initialize()
    net(mx.nd.zeros((1, 3, options.side, options.side)))
    description = {"image_width": options.side, "image_height": options.side, "cropped": options.dataset == "cub200"}
    checkpoints.save(net, prefix, description)


def load(words):
    """Loads the data set in a new process, and prints its time and memory."""
    words = [sys.executable, "-c", LOAD, *map(str, words)]
    splits, seconds, mib = json.loads(subprocess.check_output(words, cwd=str(ROOT)).decode().splitlines()[-1])
    print(f"loaded: {' + '.join(map(str, splits))} records in {seconds:.2f} s, {mib:.0f} MiB", flush=True)


def evaluate(prefix, words, results):
    """Runs test.py and returns the recalls."""
    start = time.time()
    words = [sys.executable, "test.py", "--pretrained-model", prefix, "--gpu", -1, "--results", results, *words]
    subprocess.check_call([str(word) for word in words], cwd=str(ROOT))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"test.py: {time.time() - start:.0f} s, largest process {peak:.0f} MiB", flush=True)
    return json.loads(Path(results).read_text())["recall"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", choices=["cub200", "sop", "inshop"])
    parser.add_argument("--annotations", type=Path, help="folder of CUB's official annotation files")
    parser.add_argument("--lists", type=Path, help="folder of the authors' train.txt, test.txt and bbox.txt")
    parser.add_argument("--backbone", default="resnet50_v1")
    parser.add_argument("--dim", type=int, default=1536)
    parser.add_argument("--side", type=int, default=224)
    options = parser.parse_args()
    if options.dataset == "cub200" and not options.annotations:
        parser.error("cub200 needs --annotations")
    with tempfile.TemporaryDirectory() as temporary:
        folder, prefix, results = (Path(temporary) / name for name in ("data", "net", "results.json"))
        folder.mkdir()
        if options.dataset == "cub200":
            draw_cub(folder, options.annotations)
        else:
            {"sop": draw_sop, "inshop": draw_inshop}[options.dataset](folder)
        random_network(str(prefix), options)
        load([options.dataset, folder])
        recalls = evaluate(prefix, ["--dataset", options.dataset, "--data-dir", folder], results)
        if options.lists:
            files = [options.lists.resolve() / name for name in ("train.txt", "test.txt", "bbox.txt")]
            official, listed = datasets.load(options.dataset, folder), datasets.load(options.dataset, folder, *files)
            same = (official.train, official.test) == (listed.train, listed.test)
            print(f"lists give the same records: {same}")
            load([options.dataset, folder, *files])
            words = ["--train-txt", files[0], "--test-txt", files[1], "--bbox-txt", files[2]]
            again = evaluate(prefix, ["--dataset", options.dataset, "--data-dir", folder, *words], results)
            print(f"lists give the same recalls: {again == recalls}")


if __name__ == "__main__":
    main()
