"""Evaluates a CGD checkpoint: Recall@K of a data set's test half.

    python test.py --pretrained-model=checkpoints/CGD.CUB200.C_concat_MG.ResNet50v.dim1536
    python test.py --pretrained-model=runs/demo-MG-1/best

The flags of the authors' evaluation script keep their names and meanings. What a flag does not say comes from the
checkpoint's own description (PREFIX.json), and for a checkpoint without one from the released model's.
"""

import argparse
import json
import sys

import numpy as np

from cgd import datasets, environment, errors, evaluator, files, machine
from cgd.checkpoints import Checkpoint
from cgd.errors import InputError


def arguments():
    parser = argparse.ArgumentParser(
        description="Evaluate CGD.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--pretrained-model", required=True, metavar="PREFIX", help="what stands before -symbol.json")
    add("--dataset", choices=[*datasets.READERS, "lists"], help="the checkpoint's own by default, else cub200")
    add("--data-dir", help="folder of the data set (default: ./data/CUB_200_2011, ./data/demo)")
    add("--train-txt", metavar="FILE", help="list of training images, for the statistics")
    add("--test-txt", metavar="FILE", help="list of test images, instead of the data set's own annotation files")
    add("--bbox-txt", metavar="FILE", help="bounding boxes of the listed images")
    add("--uncropped", action="store_true", help="whole pictures, not their bounding boxes")
    add("--image-width", type=int, help="default: the checkpoint's, 224 for the released one")
    add("--image-height", type=int, help="default: the checkpoint's, 224 for the released one")
    add("--recallk", default="1,2,4,8", metavar="K,K,...", help="the K of Recall@K (default: 1,2,4,8)")
    add("--batch-size", type=int, default=32, help="images a step (default: 32)")
    add(
        "--num-workers",
        type=int,
        default=machine.usable_cores(),
        help="processes that decode; 0 for none (default: one a core)",
    )
    add("--gpu", type=int, default=0, help="number of the GPU; -1 for the CPU (default: 0)")
    add("--save-embeddings", metavar="FILE.npz", help="keep descriptors, identities, ids and paths")
    add("--results", metavar="FILE.json", help="keep the figures")
    options = parser.parse_args()
    options.ranks = ranks(options.recallk)
    if options.save_embeddings and not options.save_embeddings.endswith(".npz"):
        raise InputError("--save-embeddings {}: expected a name that ends with .npz".format(options.save_embeddings))
    if options.batch_size < 1 or options.num_workers < 0:
        raise InputError("--batch-size and --num-workers: expected at least 1 and 0")
    return options


def ranks(text):
    """ "1,2,4,8" -> [1, 2, 4, 8]."""
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        raise InputError("--recallk {}: expected whole numbers from 1, as in 1,2,4,8".format(text))
    return numbers


def test_records(dataset, options, description):
    """The test half, cropped or not, with a warning where that is not what the network was trained on."""
    records = datasets.without_boxes(dataset.test) if options.uncropped else dataset.test
    cropped = records[0].box is not None
    if cropped != description["cropped"]:
        print(
            "warning: this network was trained on {} pictures and is tested on {} ones; expect a lower recall".format(
                *(("cropped", "whole") if description["cropped"] else ("whole", "cropped"))
            ),
            file=sys.stderr,
        )
    return records, cropped


def image_size(options, description):
    """(width, height), with a warning where the command differs from the checkpoint's description."""
    trained = (description["image_width"], description["image_height"])
    size = (options.image_width or trained[0], options.image_height or trained[1])
    if size != trained:
        print("warning: trained at {} x {} pixels, tested at {} x {}".format(*trained, *size), file=sys.stderr)
    return size


def main():
    options = arguments()
    checkpoint = Checkpoint(options.pretrained_model)
    description = checkpoint.description
    name = options.dataset or description["dataset"]
    dataset = datasets.load(name, options.data_dir, options.train_txt, options.test_txt, options.bbox_txt)
    print(datasets.statistics(dataset))
    records, cropped = test_records(dataset, options, description)
    preparation = evaluator.Preparation(image_size(options, description), description["mean"], description["std"])
    ctx = environment.context(options.gpu)

    result = evaluator.evaluate(
        checkpoint.graph(ctx), records, options.ranks, preparation, ctx, options.batch_size, options.num_workers
    )
    print(
        "{:.1f} images/s, search {:.2f} s, {} pictures".format(
            result.images_per_second, result.search_seconds, "cropped" if cropped else "whole"
        )
    )
    print(evaluator.report(options.ranks, result.recalls))

    if options.save_embeddings:
        save_embeddings(options.save_embeddings, result, records)
    if options.results:
        save_results(options, result, name, cropped)


def save_embeddings(file, result, records):
    with files.replacing(file) as part:
        np.savez(
            str(part),
            embeddings=result.embeddings,
            identities=result.identities,
            image_ids=np.array([record.image_id for record in records]),
            boxes=np.array([record.box or (0, 0, 0, 0) for record in records]),  # no width: the whole picture
            paths=np.array([str(record.path) for record in records]),
        )


def save_results(options, result, dataset, cropped):
    figures = {
        "pretrained_model": options.pretrained_model,
        "dataset": dataset,
        "cropped": cropped,
        "images": len(result.identities),
        "recall": dict(zip(map(str, options.ranks), result.recalls)),
        "images_per_second": result.images_per_second,
        "search_seconds": result.search_seconds,
        "versions": environment.versions(),
    }
    with files.replacing(options.results) as part:
        part.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    errors.run(main)
