"""Trains CGD with a ranking loss on the embedding and a classification loss on its first descriptor.

    python train.py --dataset demo --from-scratch --gpu -1
    python train.py --dataset cub200
    python train.py --resume runs/cub200-MG-1

The recipe of the data set (cgd/training/recipes.py) gives the defaults, shown in parentheses. A run has its own folder
with log.jsonl, arguments.json, state.npz for --resume, and the checkpoints `last` and `best`.
"""

import sys
from pathlib import Path

from cgd.data import datasets, flags, loader
from cgd.network import weights
from cgd.network.checkpoints import Checkpoint
from cgd.network.options import OPTIONS
from cgd.system import environment, errors
from cgd.system.errors import InputError
from cgd.training import arguments, cluster, curves, recipes, record, state, trainer

# What a checkpoint to fine-tune decides: its network and the preprocessing.
INHERITED = (*OPTIONS, "image_width", "image_height", "mean", "std")
OF_WEIGHTS = ("config", "dim", "backbone", "architecture", "fusion", "dense_bias")  # other weights with another value


def recipe_of(options):
    """The data set's recipe, with what a checkpoint to fine-tune decides, and the flags that were given."""
    recipe = recipes.RECIPES[options.dataset]
    if options.pretrained_model:
        description = Checkpoint(options.pretrained_model).description
        recipe = recipes.changed(recipe, recipes.typed({name: description[name] for name in INHERITED}))
    wanted = recipes.overlaid(recipe, options)
    for name in OF_WEIGHTS if options.pretrained_model else ():
        own, new = getattr(recipe, name), getattr(wanted, name)
        if own != new:
            raise InputError(f"{recipes.flag(name)} {new}: the checkpoint {options.pretrained_model} has {own}")
    return wanted


def load_weights(net, options, recipe):
    """Loads the initial weights: a checkpoint's, ImageNet's for the backbone, or random ones."""
    if options.pretrained_model:
        Checkpoint(options.pretrained_model).load_into(net)
    elif not options.from_scratch:
        weights.load_backbone(net.features, options.backbone_params or weights.zoo_file(recipe.backbone))


def run_folder(options, recipe):
    """The folder of the run. Raises InputError if --output-dir holds a run already."""
    if options.resume:
        return Path(options.resume)
    if not options.output_dir:
        names = (Path(f"runs/{options.dataset}-{recipe.config}-{n}") for n in range(1, 10**6))
        return next(name for name in names if not name.exists())
    folder = Path(options.output_dir)
    if (folder / "log.jsonl").exists():
        raise InputError(f"--output-dir {folder}: holds a run; choose another folder, or --resume {folder}")
    return folder


def train(options, recipe, resumed, store):
    """A run, on one machine or as one worker of the store.

    resumed : the record of the run to resume, or None for a new one
    """
    dataset = flags.load_dataset(options, options.dataset)
    datasets.check_trainable(dataset)
    now = record.new(options, dataset, store)
    if resumed:
        record.check(resumed, now)
    unreadable = loader.Unreadable(options.skip_unreadable)
    loaders = trainer.loaders(dataset, recipe, options.num_workers, options.eval_batch_size, unreadable)
    devices = [environment.context(number) for number in options.gpu]
    environment.seed_everything(options.seed)
    net = trainer.build(recipe, dataset, devices)
    folder = run_folder(options, recipe)
    if not (resumed and (folder / "state.npz").exists()):  # state.npz has all weights
        load_weights(net, options, recipe)
    training = trainer.Trainer(net, dataset, recipe, folder, devices, loaders, options.seed, store, options.micro_batch)
    if resumed:
        state.restore(training)
    if training.leads:
        record.write(folder, resumed or now, recipe)
        print("run: {}{}".format(folder, f", from iteration {training.iteration}" if resumed else ""))
    if store:
        store._barrier()  # all have read the state before the first one writes it

    scores = training.run(options.save_every)
    if training.leads:
        report(scores, folder, recipe, dataset)


def report(scores, folder, recipe, dataset):
    last, best, iteration = scores
    for name, recalls, number in (("last", last, recipe.iterations), ("best", best, iteration)):
        text = "  ".join(f"R@{k} {recall:.4f}" for k, recall in zip(dataset.ranks, recalls))
        print(f"{name}: {text}  (iteration {number}, {folder}/{name})")
    print("`best` was selected on the test split and is optimistic; compare `last` with other results.")
    curves.tell(folder)


def main():
    words = sys.argv[1:]
    options, resumed = arguments.parse(words, __doc__), None
    if options.resume:
        options, recipe, resumed = record.resume(words)
    else:
        recipe = recipe_of(options)
    cluster.check(options.kvstore)
    if options.kvstore and cluster.DMLC_ROLE != "worker":
        return cluster.serve()
    with cluster.membership(options.kvstore) as store:
        train(options, recipe, resumed, store)


if __name__ == "__main__":
    errors.run(main)
