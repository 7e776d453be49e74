"""A training run, from its options and its recipe to its report."""

import fcntl
import hashlib
import json
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path

from cgd.data import datasets, flags, loader
from cgd.network import descriptions, formats, weights
from cgd.network.checkpoints import Checkpoint
from cgd.network.parameters import NOT_UTF8
from cgd.system import environment
from cgd.system.errors import InputError
from cgd.system.files import must_be_writable, new_folder, replacing
from cgd.training import cluster, curves, recipes, record, state, trainer


def run(options, recipe, resumed):
    """The run, or this process's part of one on several machines.

    resumed : the record of the run to resume, or None for a new one
    """
    cluster.check(options.kvstore)
    if options.kvstore == "dist_async" and recipe.learn_p and "G" in recipe.config:
        raise InputError(
            "--learn-p yes: not with --kvstore dist_async, whose servers do not keep p within its bounds; use dist_sync"
        )
    if options.kvstore and cluster.DMLC_ROLE != "worker":
        return cluster.serve()
    with cluster.membership(options.kvstore) as store:
        train(options, recipe, resumed, store)


def train(options, recipe, resumed, store):
    """A run, on one machine or as one worker of the store."""
    leads = store is None or store.rank == 0  # the other workers write nothing
    if options.output_dir and not options.resume and leads:  # a resumed run has the flags that it was begun with
        check_output_dir(Path(options.output_dir))
    whole = dataset = flags.load_dataset(options, options.dataset)
    datasets.check_trainable(dataset)
    if options.pretrained_model and not resumed:
        warn_of_another_crop(options.pretrained_model, dataset)
    now = record.new(options, dataset, store)
    if options.validation_classes:
        dataset = datasets.hold_out(whole, options.validation_classes)
        held = datasets.count_identities(dataset.test)
        print(f"validation: the last {held} training classes, {len(dataset.test)} images")
    if resumed:
        record.check(resumed, now)
    unreadable = loader.Unreadable(options.skip_unreadable)
    processes = {
        "num_workers": options.num_workers,
        "eval_batch_size": options.eval_batch_size,
        "unreadable": unreadable,
    }
    loaders = trainer.loaders(dataset, recipe, **processes)
    test = trainer.evaluator(whole, recipe, **processes) if options.validation_classes and leads else None
    check_share(recipe, len(options.gpu))
    devices = [environment.context(number) for number in options.gpu]
    environment.seed_everything(options.seed)
    with environment.memory_for("free memory of the device, or give another by --gpu"):
        net = trainer.build(recipe, dataset, devices)
        if not (resumed and Path(options.resume, "state.npz").exists()):  # state.npz has all weights
            now["weights_sha1"] = load_weights(net, options, recipe)
            if resumed and resumed.get("weights_sha1", now["weights_sha1"]) != now["weights_sha1"]:
                raise InputError(f"{options.resume}: was begun with other initial weights; start a new run")
        more = {"seed": options.seed, "store": store, "micro_batch": options.micro_batch}
        # Every worker reads the state in the folder of a resumed run.
        training = trainer.Trainer(net, dataset, recipe, options.resume or ".", devices, loaders, **more)
    if leads:
        training.folder = run_folder(options, recipe)  # which creates a new one: not before all else has succeeded
    with occupied(training.folder) if leads else nullcontext():
        if leads and not resumed:
            check_output_dir(training.folder)  # once more: while this process loaded, another may have trained there
        if resumed:
            with environment.memory_for("free memory of the device, or give another by --gpu"):
                state.restore(training)
        if leads:
            record.write(training.folder, resumed or now, recipe)
            print("run: {}{}".format(training.folder, f", from iteration {training.iteration}" if resumed else ""))
            recipes.warn_of_milestones(recipe)
            recipes.warn_of_what_does_nothing(recipe)
        if store:
            cluster.wait_for_all(store)  # all have read the state before the first one writes it
        scores = training.run(options.save_every)
        if leads:
            tell(training, scores, test, options.eval_batch_size)


def warn_of_another_crop(prefix, dataset):
    """Warns if images are cropped differently from those that a checkpoint to fine-tune has seen."""
    before, now = descriptions.read(prefix)["cropped"], dataset.train[0].box is not None
    if before != now:
        kinds = {True: "cropped", False: "whole"}
        text = f"{prefix} was trained on {kinds[before]} images; now they are {kinds[now]} ones"
        print(f"warning: {text}{'' if now else ', unless they are crops already'}", file=sys.stderr)


def check_share(recipe, devices):
    """Raises InputError unless each device gets two images: the classifier's batch norm has no variance of one.

    Such a device would have no gradient of the classification loss.
    """
    if recipe.classification_weight and recipe.batch_size < 2 * devices:
        raise InputError(
            f"--batch-size {recipe.batch_size}: expected two images for each of the {devices} devices; give a larger "
            "one, or fewer --gpus"
        )


def tell(training, scores, test, batch_size):
    """Reports a run that has ended. test : what evaluates the test split, if validation classes have chosen `best`"""
    report(scores, training.folder, training.recipe, training.dataset)
    if test:
        report_test(test, training.folder, training.devices[0], batch_size)
    else:
        print("`best` was selected on the test split and is optimistic; compare `last` with other results.")
    tell_curves(training.folder)


def load_weights(net, options, recipe):
    """Loads the initial weights: a checkpoint's, ImageNet's for the backbone, or random ones.

    Returns the SHA-1 of their file, None for random ones.
    """
    if options.from_scratch:
        return None
    if options.pretrained_model:
        file = options.pretrained_model + "-0000.params"
        Checkpoint(options.pretrained_model).load_into(net)
    else:
        file = options.backbone_params or weights.zoo_file(recipe.backbone)
        weights.load_backbone(net.features, file)
    return hashlib.sha1(Path(formats.resolved(file)).read_bytes()).hexdigest()


def check_output_dir(folder):
    """Raises InputError if the folder holds a run already, or if MXNet could not write to a folder of this name."""
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise InputError(f"--output-dir {folder}: {NOT_UTF8}")
    if (folder / "log.jsonl").exists():
        raise InputError(f"--output-dir {folder}: holds a run; choose another folder, or --resume {folder}")
    for name in ("state.npz", "last.json", "last-0000.params", "best.json", "best-0000.params"):
        if (folder / name).exists():  # a new run would replace it, or be resumed from it
            raise InputError(f"--output-dir {folder}: holds {name} of another run; choose another folder")
    try:
        must_be_writable(folder / "log.jsonl")
    except InputError as error:
        raise InputError(f"--output-dir {folder}: {error}; choose another folder")


def run_folder(options, recipe):
    """The folder of the run; without --resume or --output-dir a new one."""
    given = options.resume or options.output_dir
    return Path(given) if given else new_folder(Path("runs"), f"{options.dataset}-{recipe.config}")


@contextmanager
def occupied(folder):
    """Locks the folder of a run against other processes, in the block, and until the end of a process that is killed.

    Raises InputError if another process has locked it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder}: another process trains in this folder; wait for its end, or choose another")
        except OSError:
            pass  # a file system without locks
        yield


def tell_curves(folder):
    """The table and the curves of the log; a warning if they cannot be drawn, because the run has succeeded."""
    try:
        curves.tell(folder)
    except Exception as error:  # also of matplotlib
        print(f"warning: the curves could not be drawn: {error}", file=sys.stderr)


def report(scores, folder, recipe, dataset):
    last, best, iteration = scores
    for name, recalls, number in (("last", last, recipe.iterations), ("best", best, iteration)):
        text = trainer.recall_text(dataset.ranks, recalls)
        of = "" if dataset.tested == datasets.TEST_SPLIT else f", {dataset.tested}"
        print(f"{name}{of}: {text}  (iteration {number}, {folder}/{name})")


def report_test(evaluate, folder, device, batch_size):
    """Evaluates `last` and `best` on the test split, after validation classes have chosen `best`. Writes test.json."""
    ranks, found = evaluate.dataset.ranks, {"iterations": {}}
    for name in ("last", "best"):
        with environment.memory_for(f"test.py evaluates {folder}/{name}; try --batch-size {max(1, batch_size // 2)}"):
            checkpoint = Checkpoint(folder / name)
            recalls = evaluate(checkpoint.graph(device), device).recalls
        found[name] = dict(zip(map(str, ranks), recalls))
        found["iterations"][name] = checkpoint.description["iteration"]
        print(f"{name}, test split: {trainer.recall_text(ranks, recalls)}")
    with replacing(folder / "test.json") as part:
        part.write_text(json.dumps(found, indent=1) + "\n")
    print("The test split has chosen nothing: compare these figures with other results.")
