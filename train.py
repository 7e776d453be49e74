"""Trains CGD: the ranking loss on the embedding plus the classification loss of its first descriptor.

    python train.py --dataset demo --from-scratch --gpu -1
    python train.py --dataset cub200 --config MG

    python train.py --resume runs/cub200-MG-1

A data set's recipe (cgd/recipes.py) gives the default of every number; a flag overrides it. The run goes into a folder
of its own: log.jsonl, arguments.json, state.npz for --resume, and the checkpoints `best` (by R@1 on the test half) and
`last`, for test.py.
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

KVSTORE = "dist_sync or dist_async: train on several machines, as the variables DMLC_* say (README)"
TF32 = "let cuDNN round to TF32 on Ampere and Ada: faster, 10 bits instead of 23 (default: full float32)"
SAVE_EVERY = "iterations between saves of what --resume needs; 0: at evaluations and the end only (default: 10 minutes)"
RESUME = "resume a run that was stopped; flags for devices, workers, paths and more --iterations may be given with it"

# What a checkpoint to train on from decides: its network, and how its pictures are made ready.
INHERITED = (*OPTIONS, "image_width", "image_height", "mean", "std")


def gpus(text):
    """ "0,1" -> [0, 1]."""
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError("expected numbers, as in 0,1,2,3, found {!r}".format(text))
    if len(set(numbers)) != len(numbers):
        raise argparse.ArgumentTypeError("expected each number once, found {!r}".format(text))
    return numbers


def arguments(words):
    parser = errors.Parser(description="Train CGD.")
    add = parser.add_argument
    flags.add_data_flags(parser, "cub200")
    help_ = "number of the GPU; several, as in 0,1, share each batch; -1 for the CPU (default: 0)"
    add("--gpu", "--gpus", type=gpus, default=[0], metavar="N,...", help=help_)
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--backbone-params", metavar="FILE", help="ImageNet weights (default: Gluon's model zoo)")
    start.add_argument("--from-scratch", action="store_true", help="random weights")
    help_ = "train on from this checkpoint: its network, image size, mean and std are the defaults"
    start.add_argument("--pretrained-model", metavar="PREFIX", help=help_)
    add("--seed", type=int, default=0, help="of the weights, the batches and the augmentation (default: 0)")
    add("--eval-batch-size", type=flags.whole(1), default=32, metavar="N", help="images a step (default: 32)")
    add(environment.TF32_FLAG, action="store_true", help=TF32)
    add("--kvstore", metavar="KIND", help=KVSTORE)
    add("--save-every", type=flags.whole(0), metavar="N", help=SAVE_EVERY)
    add("--resume", metavar="FOLDER", help=RESUME)
    add("--output-dir", help="the run's folder (default: the next free runs/DATASET-CONFIG-N)")
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
            "--resume {}: begun by an older version, whose options had other names ({}); start a new run from its "
            "weights: --pretrained-model {}/last".format(folder, error, folder)
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError("--resume {}: not the folder of a run ({}: {})".format(folder, file.name, error))
    return record


def check_the_same(record, dataset):
    """Raises InputError where the run to resume had another number of pictures."""
    before, now = record.get("data"), json.loads(json.dumps(datasets.counts(dataset)))
    if before not in (None, now):
        raise InputError("--resume: the run's data had {}, and has {} now".format(before, now))


def resumed(words):
    """The options, the recipe and the record of the run to resume: its own, overlaid by the flags given now.

    Raises InputError for a flag that would make another run of it.
    """
    given = arguments(words)
    record = read_record(given.resume)
    own = [str(word) for word in record["command"][1:]]
    before, options = arguments(own), arguments(own + words)
    recipe = recipes.from_record(record["recipe"])
    changed = recipes.overlaid(recipe, given)
    if changed.iterations > recipe.iterations:
        record = dict(record, command=record["command"] + ["--iterations", str(changed.iterations)])
        recipe = replace(recipe, iterations=changed.iterations)
    differ = list(recipes.text_of_changes(recipe, changed))
    fixed = ("dataset", "seed", "cropped", "recallk")
    differ += [name for name in fixed if getattr(before, name) != getattr(options, name)]
    if options.tf32 and not environment.tf32_allowed():  # too late for it: the libraries are loaded
        raise InputError("--resume {}: this run was begun with --tf32; give --tf32 again".format(given.resume))
    if differ:
        raise InputError(
            "--resume {}: {} would make it another run, which --output-dir begins; only --iterations may be "
            "raised".format(given.resume, " and ".join(map(recipes.flag, differ)))
        )
    return options, recipe, record


def recipe_of(options):
    """The data set's recipe, with what a checkpoint to train on from decides, and the flags that were given."""
    recipe = recipes.RECIPES[options.dataset]
    if options.pretrained_model:
        description = Checkpoint(options.pretrained_model).description
        recipe = recipes.changed(recipe, recipes.typed({name: description[name] for name in INHERITED}))
    return recipes.overlaid(recipe, options)


def load_weights(net, options, recipe):
    """The weights to start from: a checkpoint's, random ones, or ImageNet's for the backbone."""
    if options.pretrained_model:
        Checkpoint(options.pretrained_model).load_into(net)
    elif not options.from_scratch:
        weights.load_backbone(net.features, options.backbone_params or weights.zoo_file(recipe.backbone))


def run_folder(options, recipe):
    """The folder for the run. Raises InputError when the one that was asked for holds a run already."""
    if options.resume:
        return Path(options.resume)
    if not options.output_dir:
        names = (Path("runs/{}-{}-{}".format(options.dataset, recipe.config, n)) for n in range(1, 10**6))
        return next(name for name in names if not name.exists())
    folder = Path(options.output_dir)
    if (folder / "log.jsonl").exists():
        raise InputError("--output-dir {}: holds a run already; choose another".format(folder))
    return folder


def new_record(dataset):
    """What the run was asked to do, and by what it is done."""
    return {
        "command": sys.argv,
        "data": datasets.counts(dataset),
        "tf32_allowed": environment.tf32_allowed(),
        "versions": environment.versions(),
        "git_commit": environment.git_commit(),
    }


def keep_arguments(folder, record, recipe):
    """Makes the folder and writes the record into it."""
    with replacing(folder / "arguments.json") as part:
        part.write_text(json.dumps(dict(record, recipe=asdict(recipe)), indent=1) + "\n")


def train(options, recipe, record, store):
    """The story of a run, on one machine or as one of the store's workers.

    record : of the run to resume, or None for a new one
    """
    dataset = flags.load_dataset(options, options.dataset)
    datasets.check_trainable(dataset)
    if record:
        check_the_same(record, dataset)
    unreadable = loader.Unreadable(options.skip_unreadable)
    loaders = trainer.loaders(dataset, recipe, options.num_workers, options.eval_batch_size, unreadable)
    devices = [environment.context(number) for number in options.gpu]
    environment.seed_everything(options.seed)
    net = trainer.build(recipe, dataset, devices)
    folder = run_folder(options, recipe)
    if not (record and (folder / "state.npz").exists()):  # a state has all weights
        load_weights(net, options, recipe)
    training = trainer.Trainer(net, dataset, recipe, folder, devices, loaders, options.seed, store)
    if record:
        state.restore(training)
    if training.leads:
        keep_arguments(folder, record or new_record(dataset), recipe)
        print("run: {}{}".format(folder, ", from iteration {}".format(training.iteration) if record else ""))
    if store:
        store._barrier()  # all have read the state before one of them changes it

    scores = training.run(options.save_every)
    if training.leads:
        report(scores, folder, recipe, dataset)


def report(scores, folder, recipe, dataset):
    last, best, iteration = scores
    for name, recalls, number in (("last", last, recipe.iterations), ("best", best, iteration)):
        text = "  ".join("R@{} {:.4f}".format(k, recall) for k, recall in zip(dataset.ranks, recalls))
        print("{}: {}  (iteration {}, {}/{})".format(name, text, number, folder, name))
    print("`best` is the best of several looks at the test half, and flatters; compare `last` with others.")
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
