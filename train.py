"""Trains CGD: the ranking loss on the embedding plus the classification loss of its first descriptor.

    python train.py --dataset demo --from-scratch --gpu -1
    python train.py --dataset cub200 --config MG

A data set's recipe (cgd/recipes.py) gives the default of every number; a flag overrides it. The run goes into a folder
of its own: log.jsonl, arguments.json, and the checkpoints `best` (by R@1 on the test half) and `last`, for test.py.
"""

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

from cgd import datasets, environment, errors, machine, model, recipes, trainer
from cgd.checkpoints import Checkpoint
from cgd.errors import InputError
from cgd.files import replacing


def arguments():
    parser = argparse.ArgumentParser(description="Train CGD.")
    add = parser.add_argument
    add("--dataset", choices=list(recipes.RECIPES), default="cub200", help="data set and recipe (default: cub200)")
    add("--data-dir", help="folder of the data set (default: ./data/CUB_200_2011, ./data/demo)")
    add("--train-txt", metavar="FILE", help="list of training images, instead of the data set's own annotation files")
    add("--test-txt", metavar="FILE", help="list of test images")
    add("--bbox-txt", metavar="FILE", help="bounding boxes of the listed images")
    add("--uncropped", action="store_true", help="whole pictures, not their bounding boxes")
    add("--backbone-params", metavar="FILE", help="ImageNet weights (default: Gluon's model zoo)")
    add("--from-scratch", action="store_true", help="random weights")
    add("--pretrained-model", metavar="PREFIX", help="train on from this checkpoint, its kind of network included")
    add("--seed", type=int, default=0, help="of the weights, the batches and the augmentation (default: 0)")
    add("--gpu", type=int, default=0, help="number of the GPU; -1 for the CPU (default: 0)")
    add("--num-workers", type=int, default=machine.usable_cores(), help="processes that decode (default: one a core)")
    add("--save-every", type=int, default=0, help="iterations between saves of `last` (default: 0, at the end only)")
    add("--output-dir", help="the run's folder (default: the next free runs/DATASET-CONFIG-N)")
    group = parser.add_argument_group("the recipe")
    for name, text in recipes.flags():
        metavar = name.rsplit("_", 1)[-1].upper()
        group.add_argument(
            "--" + name.replace("_", "-"), metavar=metavar, help="{} ({})".format(text, recipes.defaults_of(name))
        )
    return parser.parse_args()


def recipe_of(options):
    """The data set's recipe, with the network of the checkpoint to go on from, and the flags that were given."""
    recipe = recipes.RECIPES[options.dataset]
    if options.pretrained_model:
        description = Checkpoint(options.pretrained_model).description
        network = ("config", "dim", "backbone", "combine", "gem_p")
        recipe = replace(recipe, **{name: description[name] for name in network})
    for name, _ in recipes.flags():
        text = getattr(options, name)
        if text is None:
            continue
        try:
            recipe = replace(recipe, **{name: recipes.parse(name, text)})
        except ValueError:
            raise InputError("--{} {}: not a number".format(name.replace("_", "-"), text))
    return recipe


def load_weights(net, options, recipe):
    """The weights to start from: a checkpoint's, random ones, or ImageNet's for the backbone."""
    if options.pretrained_model:
        Checkpoint(options.pretrained_model).load_into(net)
    elif not options.from_scratch:
        model.load_backbone(net.features, options.backbone_params or model.zoo_file(recipe.backbone))


def run_folder(options, recipe):
    """The folder for the run. Raises InputError when the one that was asked for holds a run already."""
    if not options.output_dir:
        names = (Path("runs/{}-{}-{}".format(options.dataset, recipe.config, n)) for n in range(1, 10**6))
        return next(name for name in names if not name.exists())
    if (Path(options.output_dir) / "log.jsonl").exists():
        raise InputError("--output-dir {}: holds a run already; choose another".format(options.output_dir))
    return Path(options.output_dir)


def keep_arguments(folder, recipe):
    """Makes the folder and writes into it what the run was asked to do."""
    record = {"command": sys.argv, "recipe": asdict(recipe), "versions": environment.versions()}
    with replacing(folder / "arguments.json") as part:
        part.write_text(json.dumps(record, indent=1) + "\n")


def main():
    options = arguments()
    recipe = recipe_of(options)
    dataset = datasets.load(options.dataset, options.data_dir, options.train_txt, options.test_txt, options.bbox_txt)
    if not dataset.train:
        raise InputError("--test-txt goes with --train-txt here: there is nothing to train on")
    if options.uncropped:
        dataset = dataset._replace(
            train=datasets.without_boxes(dataset.train), test=datasets.without_boxes(dataset.test)
        )
    print(datasets.statistics(dataset))
    ctx = environment.context(options.gpu)
    environment.seed_everything(options.seed)
    net = trainer.build(recipe, dataset, ctx)
    load_weights(net, options, recipe)
    folder = run_folder(options, recipe)
    training = trainer.Trainer(net, dataset, recipe, folder, ctx, options.seed, options.num_workers)
    keep_arguments(folder, recipe)
    print("run: {}".format(folder))

    last, best, iteration = training.run(options.save_every)
    for name, recalls, number in (("last", last, recipe.iterations), ("best", best, iteration)):
        text = "  ".join("R@{} {:.4f}".format(k, recall) for k, recall in zip(dataset.ranks, recalls))
        print("{}: {}  (iteration {}, {}/{})".format(name, text, number, folder, name))
    print("`best` is the best of several looks at the test half, and flatters; compare `last` with others.")


if __name__ == "__main__":
    errors.run(main)
