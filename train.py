"""Trains CGD with a ranking loss on the embedding and a classification loss on its first descriptor.

    python train.py --dataset demo --from-scratch --gpu -1
    python train.py --dataset cub200
    python train.py --resume runs/cub200-MG-1

The recipe of the data set (cgd/training/recipes.py) gives the defaults, shown in parentheses. A run has its own folder
with log.jsonl, arguments.json, state.npz for --resume, and the checkpoints `last` and `best`.
"""

import sys

from cgd.network import descriptions
from cgd.network.options import OPTIONS
from cgd.system import errors
from cgd.system.errors import InputError
from cgd.training import arguments, recipes, record

# What a checkpoint to fine-tune decides: its network and the preprocessing.
INHERITED = (*OPTIONS, "image_width", "image_height", "mean", "std")
OF_WEIGHTS = ("config", "dim", "backbone", "architecture", "fusion", "dense_bias", "gem_p")  # part of the weights


def recipe_of(options):
    """The data set's recipe, with what a checkpoint to fine-tune decides, and the flags that were given.

    Raises InputError for invalid values, and for those that do not fit together or do not fit the checkpoint.
    """
    recipe = recipes.RECIPES[options.dataset]
    if options.pretrained_model:
        description = descriptions.read_with_dim(options.pretrained_model)
        recipe = recipes.changed(recipe, recipes.typed({name: description[name] for name in INHERITED}))
    wanted = recipes.overlaid(recipe, options)
    for name in OF_WEIGHTS if options.pretrained_model else ():
        own, new = getattr(recipe, name), getattr(wanted, name)
        if own != new:
            raise InputError(f"{recipes.flag(name)} {new}: the checkpoint {options.pretrained_model} has {own}")
    recipes.check(wanted)
    return wanted


def main():
    words = sys.argv[1:]
    options, resumed = arguments.parse(words, __doc__), None
    if options.resume:
        options, recipe, resumed = record.resume(words)
    else:
        recipe = recipe_of(options)
    from cgd.training.run import run  # not before: it imports MXNet, which takes far longer than all the above

    run(options, recipe, resumed)


if __name__ == "__main__":
    errors.run(main)
