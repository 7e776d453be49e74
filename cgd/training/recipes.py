"""Recipes: the hyper-parameters of a training run, one recipe for each data set.

Every field is a flag of train.py, and the recipe gives its default. Each docstring begins with the exact command, and
says which numbers are the authors' and which are ours. Sources: docs/sources.md.
"""

import math
import sys
from dataclasses import dataclass, field, fields, replace
from typing import Tuple

from cgd.network.options import ARCHITECTURES, FUSIONS, MAX_IMAGE_SIDE, MAX_P, check_branches
from cgd.system.errors import InputError

NONE = "none"  # the text of a list without numbers
METAVARS = {str: "NAME", float: "X", tuple: "N,N,..."}  # of flags, by the type of their field; N for others


def number(default, text, low=0, high=math.inf, choices=None):
    """A field with the help text of its flag, and its bounds or the values to choose from."""
    return field(default=default, metadata={"help": text, "low": low, "high": high, "choices": choices})


@dataclass(frozen=True)
class Recipe:
    """The fields, with CUB200's values as defaults."""

    config: str = number("MG", "descriptors in order, letters of S, M and G; the first one also feeds the classifier")
    dim: int = number(1536, "dimensions of the embedding", low=1)
    backbone: str = number(
        "resnet50_v1", "any of Gluon's model zoo, or resnet50_v1b, se_resnet50, bn_inception, shufflenet_v2"
    )
    architecture: str = number("CGD", "how descriptors are combined (Table 3 of the paper)", choices=ARCHITECTURES)
    fusion: str = number("concat", "how branches are combined into one embedding", choices=FUSIONS)
    gem_p: float = number(3.0, "initial power of GeM", low=1, high=MAX_P)
    learn_p: bool = number(False, f"learn the power of GeM, between 1 and {MAX_P}")
    dense_bias: bool = number(True, "bias in the Dense layers of the branches")
    last_stride: int = number(1, "stride of the backbone's last stage; 1 doubles the map's sides", choices=(1, 2))
    freeze_batch_norm: bool = number(False, "keep the backbone's batch norm as it is")

    image_width: int = number(224, "width of the network's input", low=1, high=MAX_IMAGE_SIDE)
    image_height: int = number(224, "height of the network's input", low=1, high=MAX_IMAGE_SIDE)
    mean: Tuple[float, ...] = number((0.485, 0.456, 0.406), "mean of red, green and blue, in the range 0 to 1", high=1)
    std: Tuple[float, ...] = number((0.229, 0.224, 0.225), "standard deviation of the same", low=1e-6)
    resize_size: int = number(252, "resize width before the random crop; scales with --image-width", low=1)
    direct_resize_prob: float = number(0.0, "probability of resizing to the input size, without a crop", high=1)

    batch_size: int = number(128, "images per batch", low=1)
    images_per_identity: int = number(4, "images of each identity in a batch", low=1)
    iterations: int = number(1500, "number of batches to train on")
    lr: float = number(1e-4, "learning rate of Adam")
    milestones: Tuple[int, ...] = number(
        (400, 800), "iterations after which the learning rate is multiplied by gamma, or none"
    )
    gamma: float = number(0.1, "factor of the learning rate at each milestone")
    backbone_lr_mult: float = number(1.0, "factor of the learning rate for the backbone")
    weight_decay: float = number(0.0, "L2 penalty on all parameters")
    eval_every: int = number(100, "iterations between evaluations; there is always one at the end", low=1)

    margin: float = number(0.1, "margin of the triplet loss")
    soft_margin: bool = number(False, "soft margin, ln(1 + exp(x)), instead of the hinge")
    squared: bool = number(False, "squared distances in the triplet loss")
    ranking_weight: float = number(1.0, "weight of the ranking loss")
    classification_weight: float = number(1.0, "weight of the classification loss; 0 for no classifier")
    temperature: float = number(0.5, "temperature that the logits are divided by", low=1e-3)
    smoothing: float = number(0.1, "label smoothing", high=1)


# The groups of flags in --help: each begins with one of these fields.
GROUPS = {"config": "network", "image_width": "images", "batch_size": "schedule", "margin": "losses"}


def cub200():
    """python train.py --dataset cub200

    The author (naver/cgd issue #3): Adam, 1e-4 for all layers, 1,500 iterations, x 0.1 at 400 and 800, batch norm not
    frozen. The paper, as its readers report it: MG, 1536 dimensions, margin 0.1, temperature 0.5, smoothing 0.1, both
    losses 1 : 1, batches of 128, crops of 224 from 252, flips, bounding boxes. Later code of the same group: distances
    that are not squared. The released graph: last stride 1, p = 3 and fixed, bias in the Dense layers. Unknown,
    chosen by us: 4 images of each identity, as in leftthomas/CGD, no weight decay, no image resized without a crop,
    evaluation every 100 iterations.

    The authors had a Tesla P40 (24 GB); how long it took is not known. Not run here.
    Expected: the released model has R@1 0.7681, R@2 0.8484, R@4 0.9060, R@8 0.9433 by the authors' README.
    """
    return Recipe()


def cars196():
    """python train.py --dataset cars196

    From the paper, as its readers report it: SG, bounding boxes, and the rest as CUB200. Chosen by us: CUB200's
    schedule, because the sets are of similar size (1,500 batches of 128 are 24 passes over 8,054 images).

    Hardware and time as for CUB200. Not run here; no score of this network on this data set is known.
    """
    return replace(cub200(), config="SG")


def sop():
    """python train.py --dataset sop

    From the paper, as its readers report it: SG, whole images, and the rest as CUB200.

    Chosen by us: the schedule. 9,300 batches of 128 are 20 passes over 59,551 images, on average; x 0.1 after 60 % and
    80 %, as in leftthomas/CGD. Evaluation every 1,000 iterations, because the test split has 60,502 images.

    Not run here; no score of this network on this data set is known.
    """
    return replace(cub200(), config="SG", iterations=9300, milestones=(5580, 7440), eval_every=1000)


def inshop():
    """python train.py --dataset inshop

    From the paper, as its readers report it: GS, whole images, and the rest as CUB200.

    Chosen by us: the schedule. 4,040 batches of 128 are 20 passes over 25,882 images, on average; x 0.1 after 60 % and
    80 %, as in leftthomas/CGD. Evaluation every 500 iterations.

    Not run here; no score of this network on this data set is known.
    """
    return replace(cub200(), config="GS", iterations=4040, milestones=(2424, 3232), eval_every=500)


def demo():
    """python train.py --dataset demo --from-scratch --gpu -1

    Chosen by us, except for what it shares with CUB200: a small network and small images, from random weights, with a
    learning rate that suits such a short run.

    One to two minutes on two cores. Expected: R@1 of 0.86 to 0.88 (`make demo` in the README).
    """
    return replace(
        cub200(),
        backbone="resnet18_v1",
        dim=192,
        image_width=48,
        image_height=48,
        resize_size=54,
        batch_size=96,
        iterations=150,
        lr=3e-3,
        milestones=(100, 135),
        eval_every=75,
    )


# The user's own images are trained with CUB200's recipe.
RECIPES = {
    "cub200": cub200(),
    "cars196": cars196(),
    "sop": sop(),
    "inshop": inshop(),
    "demo": demo(),
    "folders": cub200(),
    "lists": cub200(),
}


def add_flags(parser):
    """Adds a flag for each field, in groups."""
    for item in fields(Recipe):
        if item.name in GROUPS:
            group = parser.add_argument_group(GROUPS[item.name])
        help_ = "{} ({})".format(item.metadata["help"], defaults_of(item.name))
        choices = ("yes", "no") if isinstance(item.default, bool) else item.metadata["choices"]
        if choices:
            group.add_argument(flag(item.name), choices=[str(choice) for choice in choices], help=help_)
        else:
            group.add_argument(flag(item.name), metavar=METAVARS.get(type(item.default), "N"), help=help_)


def overlaid(recipe, options):
    """The recipe with the flags that were given. Raises InputError for an invalid value."""
    values = {}
    for name in Recipe.__dataclass_fields__:
        text = getattr(options, name)
        if text is None:
            continue
        try:
            values[name] = parse(name, text)
        except ValueError as error:
            raise InputError(f"{flag(name)} {text}: {error}")
    return changed(recipe, values)


def check(recipe):
    """Raises InputError for fields that do not fit together."""
    check_branches(recipe.config, recipe.dim, recipe.fusion, recipe.architecture)
    if recipe.resize_size < recipe.image_width:
        raise InputError(f"--resize-size {recipe.resize_size}: expected --image-width {recipe.image_width} or more")
    if recipe.batch_size % recipe.images_per_identity:
        raise InputError(
            f"--batch-size {recipe.batch_size}: expected a multiple of --images-per-identity "
            f"{recipe.images_per_identity}"
        )
    if recipe.batch_size < 2 * recipe.images_per_identity:
        raise InputError(f"--batch-size {recipe.batch_size}: expected at least two identities, for negatives")
    if recipe.images_per_identity < 2 and recipe.ranking_weight:
        raise InputError(
            f"--images-per-identity {recipe.images_per_identity}: expected 2 or more, for positives, or "
            "--ranking-weight 0"
        )
    if recipe.ranking_weight == recipe.classification_weight == 0:
        raise InputError("--ranking-weight 0 --classification-weight 0: nothing to train")


def warn_of_milestones(recipe):
    """Warns if the learning rate falls after the end: often --iterations was given, and --milestones forgotten."""
    late = [number for number in recipe.milestones if number >= recipe.iterations > 0]
    if late:
        print(
            f"warning: --milestones {','.join(map(str, late))}: not reached in {recipe.iterations} iterations, so the "
            "learning rate does not fall there",
            file=sys.stderr,
        )


def warn_of_what_does_nothing(recipe):
    """Warns of options that another one makes useless."""
    for useless, text in (
        (recipe.learn_p and "G" not in recipe.config, f"--learn-p yes: --config {recipe.config} has no GeM (G)"),
        (recipe.soft_margin and recipe.margin != Recipe.margin, "--margin: --soft-margin yes has none"),
    ):
        if useless:
            print(f"warning: {text}, so it does not change the training", file=sys.stderr)


def changed(recipe, values):
    """The recipe with these values of fields. `resize_size` scales with a new image width, unless it is one of them."""
    if "image_width" in values and "resize_size" not in values:
        scaled = round(recipe.resize_size * values["image_width"] / recipe.image_width)
        values = dict(values, resize_size=scaled)
    return replace(recipe, **values)


def typed(values):
    """{field: value} with the types of the recipe's fields: JSON has no tuples, and writes 3.0 as 3."""
    defaults = {name: getattr(Recipe, name) for name in values}
    return {
        name: tuple(value) if isinstance(value, list) else type(defaults[name])(value) for name, value in values.items()
    }


class OlderRecipe(ValueError):
    """A recipe from before some fields were renamed."""


def from_record(record):
    """The recipe from the JSON of its fields; fields missing from older runs take their defaults.

    Raises OlderRecipe if there are fields that a recipe does not have, and TypeError or ValueError for anything else.
    """
    unknown = set(record) - set(Recipe.__dataclass_fields__)
    if unknown:
        raise OlderRecipe(", ".join(sorted(unknown)))
    return Recipe(**typed(record))


def flag(name):
    """The flag of a field."""
    return "--" + name.replace("_", "-")


def defaults_of(name):
    """The recipes' values of one field, for a flag's help: "1500; sop 9300, demo 150"."""
    usual = getattr(RECIPES["cub200"], name)
    others = {recipe: getattr(RECIPES[recipe], name) for recipe in RECIPES if getattr(RECIPES[recipe], name) != usual}
    text = ", ".join(f"{recipe} {text_of(value)}" for recipe, value in others.items())
    return f"{text_of(usual)}; {text}" if text else text_of(usual)


def parse(name, text):
    """The value of a field from the text of its flag. Raises ValueError that says what was expected."""
    default = Recipe.__dataclass_fields__[name].default
    if isinstance(default, str):
        return text
    if isinstance(default, bool):
        return text == "yes"
    kind = type(default[0] if isinstance(default, tuple) else default)
    bounds = Recipe.__dataclass_fields__[name].metadata
    try:
        words = [] if isinstance(default, tuple) and text == NONE else text.split(",")
        values = tuple(kind(word) for word in words if word or not isinstance(default, tuple))
    except ValueError:
        raise ValueError("not a {}number".format("whole " if kind is int else ""))
    if not all(bounds["low"] <= value <= bounds["high"] and math.isfinite(value) for value in values):
        raise ValueError("expected a number from {low} to {high}".format(**bounds))
    if name in ("mean", "std") and len(values) != 3:
        raise ValueError(f"expected three numbers, as in {text_of(default)}")
    if isinstance(default, tuple):
        return values
    if len(values) != 1:
        raise ValueError("expected one number")
    return values[0]


def text_of(value):
    """A value as the text of its flag; the inverse of `parse`."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (",".join(map(str, value)) or NONE) if isinstance(value, tuple) else str(value)


def text_of_changes(base, recipe):
    """{field: value as text} where `recipe` differs from `base`."""
    changed = (name for name in Recipe.__dataclass_fields__ if getattr(recipe, name) != getattr(base, name))
    return {name: text_of(getattr(recipe, name)) for name in changed}
