"""A dry run at full size: data sets with all their names and numbers, and drawn pictures in the place of photographs.

    python benchmarks/full_size.py cub200 --annotations CUB_200_2011 --lists LISTS
    python benchmarks/full_size.py sop
    python benchmarks/full_size.py inshop

cub200 takes CUB's official annotation files, and the authors' train.txt, test.txt and bbox.txt for the second reader;
each picture is just large enough for its box. The lists of the others are made up, in the official format and counts.
test.py then evaluates a network with random weights on the whole test half. Printed are seconds, and the memory of the
largest process; recalls mean nothing here.
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

# Loads a data set in a process of its own, as a command does, and prints what that took.
LOAD = """
import json, sys, time
from cgd.data import datasets
def mib():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20
before, start = mib(), time.time()
dataset = datasets.load(*sys.argv[1:])
seconds = time.time() - start
halves = [len(dataset.train), len(dataset.test), len(dataset.gallery or [])]
print(json.dumps([halves, seconds, mib() - before]))
"""


def draw_cub(folder, annotation_folder):
    """CUB's annotation files, and a picture for each line of images.txt: an ellipse in its box."""
    for name in ("images.txt", "image_class_labels.txt", "bounding_boxes.txt"):
        shutil.copy(str(annotation_folder / name), str(folder / name))
    boxes = annotations.read_boxes(folder / "bounding_boxes.txt")
    for image_id, (_, name) in annotations.read_numbered(folder / "images.txt").items():
        x, y, w, h = boxes[image_id]
        picture = Image.new("RGB", (x + w, y + h), (image_id % 256, image_id // 256, 128))
        ImageDraw.Draw(picture).ellipse((x, y, x + w, y + h), fill=(255 - image_id % 256, 90, image_id % 199))
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(str(path))


def draw_sop(folder):
    """Lists in SOP's format and counts, and a tiny picture for each line."""
    picture = tiny_picture(folder)
    image_id = 0
    for half, first in (("train", 1), ("test", 11319)):
        classes, images = datasets.SOURCES["sop"].counts[half]
        rows = ["image_id class_id super_class_id path"]
        for number in range(images):
            image_id += 1
            label = first + number * classes // images
            path = f"kind{label % 12:02d}_final/{110000000000 + label}_{number}.JPG"
            rows.append(f"{image_id} {label} {label % 12 + 1} {path}")
            put(picture, folder / path)
        (folder / f"Ebay_{half}.txt").write_text("\n".join(rows) + "\n")


def draw_inshop(folder):
    """A list in In-shop's format and counts, and a tiny picture for each line."""
    picture = tiny_picture(folder)
    counts = {"train": "train", "query": "test", "gallery": "gallery"}
    rows = []
    for status, half in counts.items():
        classes, images = datasets.SOURCES["inshop"].counts[half]
        for number in range(images):
            item = number * classes // images + (0 if half == "train" else 4000)
            path = f"img/WOMEN/Dresses/id_{item:08d}/{status}_{number}_front.jpg"
            rows.append(f"{path}  id_{item:08d}  {status}")
            put(picture, folder / path)
    head = [str(len(rows)), "image_name item_id evaluation_status"]
    (folder / "list_eval_partition.txt").write_text("\n".join(head + rows) + "\n")


def tiny_picture(folder):
    Image.new("RGB", (16, 16), (200, 120, 40)).save(str(folder / "tiny.jpg"))
    return (folder / "tiny.jpg").read_bytes()


def put(data, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def random_network(prefix, options):
    net = model.CGD("MG", options.dim, options.backbone)
    net.initialize()
    net(mx.nd.zeros((1, 3, options.side, options.side)))
    description = {"image_width": options.side, "image_height": options.side, "cropped": options.dataset == "cub200"}
    checkpoints.save(net, prefix, description)


def load(words):
    """Loads the data set, and says what it took."""
    words = [sys.executable, "-c", LOAD, *map(str, words)]
    halves, seconds, mib = json.loads(subprocess.check_output(words, cwd=str(ROOT)).decode().splitlines()[-1])
    print("read: {} records in {:.2f} s, {:.0f} MiB".format(" + ".join(map(str, halves)), seconds, mib), flush=True)


def evaluate(prefix, words, results):
    """Runs test.py, and gives the recalls."""
    start = time.time()
    words = [sys.executable, "test.py", "--pretrained-model", prefix, "--gpu", -1, "--results", results, *words]
    subprocess.check_call([str(word) for word in words], cwd=str(ROOT))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"test.py: {time.time() - start:.0f} s, {peak:.0f} MiB in its largest process", flush=True)
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
            print(f"the lists give the very same records: {same}")
            load([options.dataset, folder, *files])
            words = ["--train-txt", files[0], "--test-txt", files[1], "--bbox-txt", files[2]]
            again = evaluate(prefix, ["--dataset", options.dataset, "--data-dir", folder, *words], results)
            print(f"and the very same recalls: {again == recalls}")


if __name__ == "__main__":
    main()
