"""Recipes: what a training run is made of, one for each data set.

A recipe is data. Every field is a flag of train.py, whose default is the recipe's.
"""

from dataclasses import dataclass, field, fields, replace
from typing import Tuple


def number(default, text):
    """A field with the help text of its flag."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Recipe:
    """CUB200's, for the others to differ from.

    The author's own word (naver/cgd issue #3): Adam, 1e-4 for all layers, 1,500 iterations, x 0.1 at 400 and 800, batch
    norm not frozen. The paper, by its readers: margin 0.1, temperature 0.5, smoothing 0.1, both losses 1 : 1, batches
    of 128, crops of 224 from 252, flips. From later code of the same group: 4 images of each identity, the order of
    the augmentations. Unknown, and ours: no weight decay, evaluation each 100 iterations.
    """

    config: str = number("MG", "descriptors in order, letters of S, M and G; the first feeds the classifier")
    dim: int = number(1536, "length of the embedding")
    backbone: str = number("resnet50_v1", "a network of Gluon's model zoo")
    combine: str = number("concat", "how the branches make one embedding: concat or sum")
    gem_p: float = number(3.0, "GeM's power, at first")
    image_width: int = number(224, "width of the network's input")
    image_height: int = number(224, "height of the network's input")
    enlarge: float = number(1.125, "training pictures are resized to so many times the input, then cropped to it")
    batch_size: int = number(128, "images a batch")
    images_per_identity: int = number(4, "images of each identity in a batch")
    iterations: int = number(1500, "batches to train on")
    lr: float = number(1e-4, "Adam's learning rate")
    lr_steps: Tuple[int, ...] = number((400, 800), "iterations after which the learning rate falls")
    lr_factor: float = number(0.1, "what it is multiplied by")
    weight_decay: float = number(0.0, "L2 penalty on all parameters")
    margin: float = number(0.1, "the triplet loss's margin")
    temperature: float = number(0.5, "the logits are divided by it")
    smoothing: float = number(0.1, "label smoothing")
    eval_every: int = number(100, "iterations between evaluations; there is one at the end in any case")


CUB200 = Recipe()

# Ours: two minutes on two cores, from random weights.
DEMO = replace(
    CUB200,
    backbone="resnet18_v1",
    dim=128,
    image_width=48,
    image_height=48,
    batch_size=96,
    iterations=150,
    lr=3e-3,
    lr_steps=(100, 135),
    eval_every=75,
)

RECIPES = {"cub200": CUB200, "demo": DEMO, "lists": CUB200}


def defaults_of(name):
    """The recipes' values of one field, for a flag's help: "cub200 1500, demo 220"."""
    values = {recipe: getattr(RECIPES[recipe], name) for recipe in RECIPES}
    if len(set(values.values())) == 1:
        return _text(values["cub200"])
    return ", ".join("{} {}".format(recipe, _text(value)) for recipe, value in values.items())


def parse(name, text):
    """The value of a field from the text of its flag. Raises ValueError where it is not of the field's kind."""
    default = getattr(CUB200, name)
    if isinstance(default, tuple):
        return tuple(int(word) for word in text.split(",") if word)
    return type(default)(text)


def _text(value):
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def flags():
    """(field name, help) of every field."""
    return [(item.name, item.metadata["help"]) for item in fields(Recipe)]
