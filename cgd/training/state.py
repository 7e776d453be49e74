"""The state of a run, in one file: what `train.py --resume` needs to continue with the same bits."""

import json
import os
import time
import zipfile
import zlib

import numpy as np

from cgd.network import weights
from cgd.system.environment import mx
from cgd.system.errors import InputError, say
from cgd.system.files import replacing

FACTS = "facts"  # the array that holds JSON


def save(run, log):
    """Writes state.npz: parameters, the optimiser's state, scores, the length of the log, and unlogged figures.

    Batches and augmentation have no state: they depend on the seed and the iteration only. Raises InputError if a value
    is not finite; the file then stays as it was.

    run : trainer.Trainer · log : its open log file
    """
    mx.nd.waitall()
    try:
        log.flush()
        os.fsync(log.fileno())
    except OSError as error:  # a full disk is often noticed here first
        raise InputError(f"{log.name}: cannot be written ({error.strerror})")
    arrays, steps = run.optimiser.state()
    for name, parameter in run.net.collect_params().items():
        arrays["parameter:" + name] = parameter.data(run.devices[0])
    facts = {
        "iteration": run.iteration,
        "updates": steps,
        "evaluated": run.evaluated,
        "best": run.best,
        "recalls": run.recalls,
        "unlogged": run.meter.values,
        "log_length": log.tell(),
    }
    write_state(run.folder / "state.npz", arrays, facts)
    run.saved_at = time.time()


def restore(run):
    """Restores what `save` wrote into the run's folder, and cuts the log to its length then.

    A folder without a state begins anew. Raises InputError for a state that is broken or of another network, and if
    one is gone: it is saved before `last`, and at each evaluation.
    """
    file, log = run.folder / "state.npz", run.folder / "log.jsonl"
    if run.leads:
        for part in run.folder.glob(".part-*"):  # half-written files of a killed process
            part.unlink()
    if not file.exists():
        evaluations = log.read_text().count('"recall"') if log.exists() else 0  # killed before it wrote a line
        if (run.folder / "last.json").exists() or evaluations > 1:  # after the first one, a kill may have come before
            hint = "train its checkpoint further by --pretrained-model, in a new folder"
            raise InputError(f"{file}: is gone, so this run cannot be resumed; {hint}")
        if run.leads:
            log.write_text("")
        return
    arrays, facts = read_state(file)
    parameters = {"parameter:" + name: p for name, p in run.net.collect_params().items()}
    moments = {name: value for name, value in arrays.items() if name.startswith("moment")}
    weights.set_parameters(parameters, {name: arrays[name] for name in arrays if name not in moments}, file)
    run.optimiser.restore(moments, facts["updates"])
    run.iteration, run.evaluated, run.recalls = facts["iteration"], facts["evaluated"], facts["recalls"]
    run.best = best_on_disk(run.folder, facts["best"], run.dataset.ranks)
    if run.best is None:
        run.evaluated = None  # a finished run is evaluated once more, and writes `best`
        if facts["best"] and run.leads:
            recalls, iteration = facts["best"]
            k, recall = min(zip(run.dataset.ranks, recalls))
            had = f"it had R@{k} {recall:.4f} at iteration {iteration}"
            say(f"warning: {run.folder}/best is missing; {had}. The best evaluation from now on replaces it")
    run.meter.values = facts.get("unlogged", [])
    mx.nd.waitall()  # without memory for a copy an error is raised here, and not where the state would be saved
    if run.leads:
        with open(log, "ab") as lines:
            lines.truncate(min(lines.tell(), facts["log_length"]))  # never longer: somebody may have cut it
        run.diagnostics.catch_up(log.read_text().splitlines())


def best_on_disk(folder, saved, ranks):
    """(recalls, iteration) of the checkpoint `best`; None if there is none, so that the next evaluation writes it.

    saved : the same, as in the state. A process that was killed just after an evaluation may have written a newer
        `best` than its state knows, or half of one.
    """
    try:
        found = json.loads((folder / "best.json").read_text())
        if saved and found["iteration"] == saved[1]:
            return tuple(saved)
        return [found["recall"][str(k)] for k in ranks], found["iteration"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_state(file, arrays, facts):
    """Writes {name: NDArray} and a dict of what JSON can hold into one file of plain arrays, whole or not at all.

    An .npz without pickled objects: to open somebody else's runs no code of theirs. Raises InputError for values that
    are not finite: what the file held stays.
    """
    values = {name: value.asnumpy() for name, value in arrays.items()}
    for name, value in values.items():
        if not np.isfinite(value).all():
            raise InputError(f"{file}: {name} is not finite; what was saved before is left as it is")
    values[FACTS] = np.array(json.dumps(facts))
    with replacing(file) as part, zipfile.ZipFile(str(part), "w") as archive:  # np.savez leaves it open on a full disk
        for name, value in values.items():
            with archive.open(name + ".npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, value, allow_pickle=False)


def read_state(file):
    """({name: NDArray}, facts) of a file that `write_state` wrote. Raises InputError for any other."""
    try:
        with np.load(str(file), allow_pickle=False) as archive:
            values = {name: archive[name] for name in archive.files}
        facts = json.loads(values.pop(FACTS).item())
        return {name: mx.nd.array(value, dtype=value.dtype) for name, value in values.items()}, facts
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{file}: not the state of a run, or truncated ({error})")
