"""Trains CGD: the ranking loss on the embedding plus the classification loss of its first descriptor.

    python train.py --dataset demo --from-scratch --gpu -1
    python train.py --dataset cub200 --config MG

    python train.py --resume runs/cub200-MG-1

A data set's recipe (cgd/recipes.py) gives the default of every number; a flag overrides it. The run goes into a folder
of its own: log.jsonl, arguments.json, state.npz for --resume, and the checkpoints `best` (by R@1 on the test half) and
`last`, for test.py.
"""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

from cgd import cluster, curves, datasets, environment, errors, flags, images, model, recipes, trainer
from cgd.checkpoints import Checkpoint
from cgd.errors import InputError
from cgd.files import replacing

KVSTORE = "dist_sync or dist_async: train on several machines, as the variables DMLC_* say (README)"
TF32 = "let cuDNN round to TF32 on Ampere and Ada: faster, 10 bits instead of 23 (default: full float32)"
SAVE_EVERY = "iterations between saves of what --resume needs; 0: at evaluations and the end only (default: 100)"


def arguments(words):
    parser = errors.Parser(description="Train CGD.")
    add = parser.add_argument
    flags.add_data_flags(parser, "cub200")
    add("--backbone-params", metavar="FILE", help="ImageNet weights (default: Gluon's model zoo)")
    add("--from-scratch", action="store_true", help="random weights")
    add("--pretrained-model", metavar="PREFIX", help="train on from this checkpoint, its kind of network included")
    add("--seed", type=int, default=0, help="of the weights, the batches and the augmentation (default: 0)")
    add("--gpus", metavar="N,N,...", help="several GPUs, which share each batch, in the place of --gpu")
    add(environment.TF32_FLAG, action="store_true", help=TF32)
    add("--kvstore", metavar="KIND", help=KVSTORE)
    add("--save-every", type=flags.whole(0), default=100, metavar="N", help=SAVE_EVERY)
    add("--resume", metavar="FOLDER", help="go on with a run that was stopped; other flags come from its own command")
    add("--output-dir", help="the run's folder (default: the next free runs/DATASET-CONFIG-N)")
    recipes.add_flags(parser)
    parser.set_defaults(dataset="cub200")
    return parser.parse_args(words)


def resumed(options):
    """The options of the run to go on with, overlaid by the flags given now."""
    file = Path(options.resume) / "arguments.json"
    try:
        command = json.loads(file.read_text())["command"]
        options = arguments([str(word) for word in command[1:] + sys.argv[1:]])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError("--resume {}: not the folder of a run ({}: {})".format(options.resume, file.name, error))
    if options.tf32 and not environment.tf32_allowed():  # too late for it: the libraries are loaded
        raise InputError("--resume {}: this run was begun with --tf32; give --tf32 again".format(options.resume))
    return options


def recipe_of(options):
    """The data set's recipe, with the network of the checkpoint to go on from, and the flags that were given."""
    recipe = recipes.RECIPES[options.dataset]
    if options.pretrained_model:
        description = Checkpoint(options.pretrained_model).description
        recipe = replace(recipe, **{name: description[name] for name in model.OPTIONS})
    return recipes.overlaid(recipe, options)


def load_weights(net, options, recipe):
    """The weights to start from: a checkpoint's, random ones, or ImageNet's for the backbone."""
    if options.pretrained_model:
        Checkpoint(options.pretrained_model).load_into(net)
    elif not options.from_scratch:
        model.load_backbone(net.features, options.backbone_params or model.zoo_file(recipe.backbone))


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


def keep_arguments(folder, recipe, dataset):
    """Makes the folder and writes into it what the run was asked to do."""
    record = {"command": sys.argv, "recipe": asdict(recipe), "data": datasets.counts(dataset)}
    record["tf32_allowed"] = environment.tf32_allowed()
    record["versions"] = environment.versions()
    record["git_commit"] = environment.git_commit()
    with replacing(folder / "arguments.json") as part:
        part.write_text(json.dumps(record, indent=1) + "\n")


def devices(options):
    """The devices of --gpus, or of --gpu."""
    if not options.gpus:
        return [environment.context(options.gpu)]
    try:
        numbers = [int(word) for word in options.gpus.split(",")]
    except ValueError:
        raise InputError("--gpus {}: expected numbers, as in 0,1,2,3".format(options.gpus))
    if len(set(numbers)) != len(numbers):
        raise InputError("--gpus {}: expected each number once".format(options.gpus))
    return [environment.context(number) for number in numbers]


def train(options, store):
    """The story of a run, on one machine or as one of the store's workers."""
    recipe = recipe_of(options)
    dataset = flags.load_dataset(options, options.dataset)
    datasets.check_trainable(dataset)
    contexts = devices(options)
    environment.seed_everything(options.seed)
    net = trainer.build(recipe, dataset, contexts)
    load_weights(net, options, recipe)
    folder = run_folder(options, recipe)
    unreadable = images.Unreadable(options.skip_unreadable)
    workers = options.num_workers
    training = trainer.Trainer(net, dataset, recipe, folder, contexts, options.seed, workers, unreadable, store)
    if options.resume:
        training.restore()
    elif training.leads:
        keep_arguments(folder, recipe, dataset)
    if training.leads:
        print("run: {}{}".format(folder, ", from iteration {}".format(training.iteration) if options.resume else ""))
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
    options = arguments(sys.argv[1:])
    if options.resume:
        options = resumed(options)
    cluster.check(options.kvstore)
    if options.kvstore and cluster.DMLC_ROLE != "worker":
        return cluster.serve()
    with cluster.membership(options.kvstore) as store:
        train(options, store)


if __name__ == "__main__":
    errors.run(main)
