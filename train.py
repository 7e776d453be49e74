"""Trains CGD with a ranking loss on the embedding and a classification loss on its first descriptor.

    python train.py --dataset demo --from-scratch --gpu -1
    python train.py --dataset cub200
    python train.py --resume runs/cub200-MG-1

The recipe of the data set (cgd/training/recipes.py) gives the defaults, shown in parentheses. A run has its own folder
with log.jsonl, arguments.json, state.npz for --resume, and the checkpoints `last` and `best`.
"""

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

from cgd.data import datasets, flags, loader
from cgd.network import weights
from cgd.network.checkpoints import Checkpoint
from cgd.network.options import OPTIONS
from cgd.system import environment, errors
from cgd.system.errors import InputError
from cgd.system.files import replacing
from cgd.training import cluster, curves, recipes, state, trainer

KVSTORE = "dist_sync or dist_async: train on several machines; DMLC_* set each process's role (docs/distributed.md)"
TF32 = "allow TF32 on Ampere and Ada: faster, with 10 bits of mantissa instead of 23 (default: full float32)"
SAVE_EVERY = "iterations between saves of the state; 0: at evaluations and the end only (default: every 10 minutes)"
EVAL_BATCH_SIZE = "images per step of an evaluation (default: 32)"
RESUME = "resume a stopped run; flags for devices, workers and paths, and more --iterations, may be given again"

# What a checkpoint to fine-tune decides: its network and the preprocessing.
INHERITED = (*OPTIONS, "image_width", "image_height", "mean", "std")

# Flags that --resume may not change, and what in a run's record must be the same.
FIXED = ("dataset", "seed", "from_scratch", "pretrained_model")
COMPARED = {
    "data": "numbers of classes and images",
    "data_sha1": "images, classes or boxes",
    "ranks": "--recallk",
    "tf32_allowed": "precision (--tf32)",
    "kvstore": "--kvstore",
    "workers": "number of workers",
}


def gpus(text):
    """ "0,1" -> [0, 1]."""
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers, as in 0,1,2,3, found {text!r}")
    if len(set(numbers)) != len(numbers):
        raise argparse.ArgumentTypeError(f"expected each number once, found {text!r}")
    return numbers


def arguments(words):
    parser = errors.Parser(
        usage="%(prog)s [flags]", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_data_flags(parser, "cub200")
    group = parser.add_argument_group("initial weights")
    start = group.add_mutually_exclusive_group()
    help_ = "ImageNet weights of the backbone (default: from Gluon's model zoo)"
    start.add_argument("--backbone-params", metavar="FILE", help=help_)
    start.add_argument("--from-scratch", action="store_true", help="random weights")
    help_ = "checkpoint to fine-tune; its network, image size, mean and std become the defaults"
    start.add_argument("--pretrained-model", metavar="PREFIX", help=help_)
    add = parser.add_argument_group("devices").add_argument
    help_ = "GPU number; several, as in 0,1, share each batch; -1 for the CPU (default: 0)"
    add("--gpu", "--gpus", type=gpus, default=[0], metavar="N,...", help=help_)
    add(environment.TF32_FLAG, action="store_true", help=TF32)
    add("--eval-batch-size", type=flags.whole(1), default=32, metavar="N", help=EVAL_BATCH_SIZE)
    add("--kvstore", metavar="KIND", help=KVSTORE)
    add = parser.add_argument_group("run").add_argument
    add("--seed", type=int, default=0, help="seed of initialisation, batches and augmentation (default: 0)")
    add("--output-dir", metavar="FOLDER", help="folder of the run (default: the next free runs/DATASET-CONFIG-N)")
    add("--resume", metavar="FOLDER", help=RESUME)
    add("--save-every", type=flags.whole(0), metavar="N", help=SAVE_EVERY)
    recipes.add_flags(parser)
    parser.set_defaults(dataset="cub200")
    return parser.parse_args(words)


def read_record(folder):
    """What `keep_arguments` wrote into a run's folder."""
    file = Path(folder) / "arguments.json"
    try:
        record = json.loads(file.read_text())
        [str(word) for word in record["command"][1:]], recipes.from_record(record["recipe"])
    except recipes.OlderRecipe as error:
        raise InputError(
            f"--resume {folder}: started by an older version, whose options had other names ({error}); start a new run "
            f"from its weights: --pretrained-model {folder}/last"
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"--resume {folder}: not the folder of a run ({file.name}: {error})")
    return record


def resumed(words):
    """The options, the recipe and the record of the run to resume: its own, overridden by the flags given now.

    Raises InputError for a flag that would change the experiment. What the flags lead to is compared by `check_record`.
    """
    given = arguments(words)
    folder, record = given.resume, read_record(given.resume)
    if given.output_dir:
        raise InputError("--resume and --output-dir exclude each other: a resumed run stays in its folder")
    own = [str(word) for word in record["command"][1:]]
    try:
        before, options = arguments(own), arguments(own + words)
    except InputError as error:
        raise InputError(f"--resume {folder}: with the run's own flags, {error}")
    recipe = recipes.from_record(record["recipe"])
    changed = recipes.overlaid(recipe, given)
    if changed.iterations > recipe.iterations:
        record = dict(record, command=record["command"] + ["--iterations", str(changed.iterations)])
        recipe = replace(recipe, iterations=changed.iterations)
    differ = list(recipes.text_of_changes(recipe, changed))
    differ += [name for name in FIXED if getattr(before, name) != getattr(options, name)]
    if not (Path(folder) / "state.npz").exists() and name_of(before.backbone_params) != name_of(
        options.backbone_params
    ):
        differ.append("backbone_params")  # no state yet: the weights matter
    if differ:
        raise InputError(
            "--resume {}: {} would make it another run; start a new one, with --output-dir. Only --iterations may be "
            "raised".format(folder, " and ".join(map(recipes.flag, differ)))
        )
    return options, recipe, record


def name_of(file):
    return file and Path(file).name


def check_record(record, now):
    """Raises InputError if the run to resume had other data, K, precision or workers than it would have now."""
    for key, what in COMPARED.items():
        if key not in record:  # of an older version
            continue
        value = json.loads(json.dumps(now[key]))  # as JSON gives it back
        if record[key] != value:
            raise InputError(f"--resume: the run had other {what}: {record[key]}, now {value}")


def recipe_of(options):
    """The data set's recipe, with what a checkpoint to fine-tune decides, and the flags that were given."""
    recipe = recipes.RECIPES[options.dataset]
    if options.pretrained_model:
        description = Checkpoint(options.pretrained_model).description
        recipe = recipes.changed(recipe, recipes.typed({name: description[name] for name in INHERITED}))
    return recipes.overlaid(recipe, options)


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
        raise InputError(f"--output-dir {folder}: holds a run already; choose another")
    return folder


def new_record(options, dataset, store):
    """The record of a new run: command, data, machines and versions."""
    return {
        "command": sys.argv,
        "data": datasets.counts(dataset),
        "data_sha1": datasets.digests(dataset),
        "ranks": dataset.ranks,
        "tf32_allowed": environment.tf32_allowed(),
        "kvstore": options.kvstore,
        "workers": store.num_workers if store else 1,
        "versions": environment.versions(),
        "git_commit": environment.git_commit(),
    }


def keep_arguments(folder, record, recipe):
    """Creates the folder and writes arguments.json."""
    with replacing(folder / "arguments.json") as part:
        part.write_text(json.dumps(dict(record, recipe=asdict(recipe)), indent=1) + "\n")


def train(options, recipe, record, store):
    """A run, on one machine or as one worker of the store.

    record : of the run to resume, or None for a new one
    """
    dataset = flags.load_dataset(options, options.dataset)
    datasets.check_trainable(dataset)
    now = new_record(options, dataset, store)
    if record:
        check_record(record, now)
    unreadable = loader.Unreadable(options.skip_unreadable)
    loaders = trainer.loaders(dataset, recipe, options.num_workers, options.eval_batch_size, unreadable)
    devices = [environment.context(number) for number in options.gpu]
    environment.seed_everything(options.seed)
    net = trainer.build(recipe, dataset, devices)
    folder = run_folder(options, recipe)
    if not (record and (folder / "state.npz").exists()):  # state.npz has all weights
        load_weights(net, options, recipe)
    training = trainer.Trainer(net, dataset, recipe, folder, devices, loaders, options.seed, store)
    if record:
        state.restore(training)
    if training.leads:
        keep_arguments(folder, record or now, recipe)
        print("run: {}{}".format(folder, f", from iteration {training.iteration}" if record else ""))
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
    options = arguments(words)
    record = None
    if options.resume:
        options, recipe, record = resumed(words)
    else:
        recipe = recipe_of(options)
    cluster.check(options.kvstore)
    if options.kvstore and cluster.DMLC_ROLE != "worker":
        return cluster.serve()
    with cluster.membership(options.kvstore) as store:
        train(options, recipe, record, store)


if __name__ == "__main__":
    errors.run(main)
