"""arguments.json: what a run was asked to do, and what a resumed run must have in common with it."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

from cgd.data import datasets
from cgd.system import machine
from cgd.system.errors import InputError
from cgd.system.files import replacing
from cgd.training import recipes
from cgd.training.arguments import parse

# Flags that --resume may not change, and what in a run's record must be the same.
FIXED = ("dataset", "seed", "from_scratch", "validation_classes")
COMPARED = {
    "data": "numbers of classes and images",
    "data_sha1": "images, classes or boxes",
    "ranks": "--recallk",
    "tf32_allowed": "precision (--tf32)",
    "kvstore": "--kvstore",
    "workers": "number of workers",
}


def read(folder):
    """What `write` wrote into a run's folder."""
    file = Path(folder) / "arguments.json"
    try:
        record = json.loads(file.read_text())
        [str(word) for word in record["command"][1:]], recipes.from_record(record["recipe"])
    except recipes.OlderRecipe as error:
        raise InputError(
            f"--resume {folder}: started by an older version, whose options had other names ({error}); start a new run "
            f"from its weights: {weights_in(folder)}"
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"--resume {folder}: not the folder of a run ({file.name}: {error})")
    return record


def resume(words):
    """The options, the recipe and the record of the run to resume: its own, overridden by the flags given now.

    Raises InputError for a flag that would change the experiment. What the flags lead to is compared by `check`.
    """
    given = parse(words)
    folder, record = given.resume, read(given.resume)
    if given.output_dir:
        raise InputError("--resume and --output-dir exclude each other: a resumed run stays in its folder")
    own = [str(word) for word in record["command"][1:]]
    try:
        before, options = parse(own), parse(own + words)
    except InputError as error:
        raise InputError(f"--resume {folder}: with the run's own flags, {error}")
    recipe = recipes.from_record(record["recipe"])
    changed = recipes.overlaid(recipe, given)
    if changed.iterations > recipe.iterations:
        record = dict(record, command=record["command"] + ["--iterations", str(changed.iterations)])
        recipe = replace(recipe, iterations=changed.iterations)
    differ = {name: getattr(recipe, name) for name in recipes.text_of_changes(recipe, changed)}
    differ.update({name: getattr(before, name) for name in FIXED if getattr(before, name) != getattr(options, name)})
    weights_matter = not (Path(folder) / "state.npz").exists()
    if weights_matter and name_of(before.backbone_params) != name_of(options.backbone_params):
        differ["backbone_params"] = before.backbone_params
    if not same_checkpoint(before.pretrained_model, options.pretrained_model):
        differ["pretrained_model"] = before.pretrained_model
    if differ:
        texts = {name: "not given" if value is None else recipes.text_of(value) for name, value in differ.items()}
        own_values = ", ".join(f"{recipes.flag(name)} is {text}" for name, text in texts.items())
        raise InputError(
            f"--resume {folder}: in this run {own_values}; another value needs a new run, with --output-dir. Devices, "
            "loader processes and paths may change, and --iterations may be raised"
        )
    return options, recipe, record


def weights_in(folder):
    """What to fine-tune of a run that cannot be resumed, as text."""
    names = [name for name in ("last", "best") if (Path(folder) / (name + "-0000.params")).exists()]
    return f"--pretrained-model {folder}/{names[0]}" if names else "but it has saved none"


def same_checkpoint(before, now):
    """Whether it is one, which may have moved: then it has another path, and nothing is left at the old one."""
    gone = before and now and not Path(f"{before}-0000.params").exists()
    return before == now or bool(gone and name_of(before) == name_of(now))


def name_of(file):
    return file and Path(file).name


def check(record, now):
    """Raises InputError if the run to resume had other data, K, precision or workers than it would have now."""
    for key, what in COMPARED.items():
        if key not in record:  # of an older version
            continue
        value = json.loads(json.dumps(now[key]))  # as JSON gives it back
        if record[key] != value:
            raise InputError(f"--resume: the run had other {what}: {record[key]}, now {value}")


def new(options, dataset, store):
    """The record of a new run: command, data, machines and versions."""
    from cgd.system import environment  # it imports MXNet, which `read` and `resume` do not need

    return {
        "command": sys.argv,
        "data": datasets.counts(dataset),
        "data_sha1": datasets.digests(dataset),
        "ranks": dataset.ranks,
        "tf32_allowed": environment.tf32_allowed(),
        "kvstore": options.kvstore,
        "workers": store.num_workers if store else 1,
        "cpu": machine.cpu_model(),  # runs of one seed differ between machines
        "versions": environment.versions(),
        "git_commit": environment.git_commit(),
    }


def write(folder, record, recipe):
    """Creates the folder and writes arguments.json."""
    with replacing(folder / "arguments.json") as part:
        part.write_text(json.dumps(dict(record, recipe=asdict(recipe)), indent=1) + "\n")
