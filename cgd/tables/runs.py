"""Runs of train.py for the rows of tables: each row and seed has a folder, and is started, resumed and shared.

    STUDY/setting.json                  the data set, and the flags that all runs have in common
    STUDY/config=SG/seed-0/             what train.py writes; its output in `output.txt`, its duration in `time.json`;
                                        `claim` is locked while it runs

A folder is named after what the row changes in the study's recipe, so that tables share the runs that they have in
common.
"""

import fcntl
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple, Tuple

from cgd.data.flags import MAX_WORKERS
from cgd.system.errors import InputError, Parser
from cgd.system.files import replacing
from cgd.system.machine import usable_cores
from cgd.tables import paper
from cgd.training import arguments, curves, recipes

SETTING = "setting.json"
TRAIN = Path(__file__).resolve().parents[2] / "train.py"

# What may differ between the commands of a study, and is passed on to runs that are resumed. Images and lists may move:
# other ones, beside those of the study, would be another data set.
MAY_CHANGE = ("skip_unreadable", "eval_batch_size", "save_every")
MAY_MOVE = ("data_dir", "train_txt", "test_txt", "bbox_txt", "gallery_txt")

# Set by the row, the seed or the device; not allowed among the flags that all runs share.
NOT_SHARED = (
    "--dataset --resume --output-dir --seed --gpu --gpus --kvstore --pretrained-model --validation-classes".split()
)


class OlderRun(InputError):
    """A run or a study of an older version of the program."""


class Study(NamedTuple):
    """Runs on one data set that belong together.

    dataset : train.py's --dataset · flags : further flags of train.py, for all runs
    """

    folder: Path
    dataset: str
    flags: Tuple[str, ...] = ()

    def recipe(self):
        """The recipe that the rows change. Raises InputError for an invalid flag."""
        return recipes.overlaid(recipes.RECIPES[self.dataset], self.options())

    def options(self):
        """The options of train.py that all runs share. Raises InputError for an unknown flag."""
        return arguments.parse(["--dataset", self.dataset, *self.flags])

    def rows(self, table):
        """The table's rows for this data set: each of the paper's four sets has its own, any other has all.

        Empty for a table that compares crops with whole images, if the data set has no bounding boxes.
        """
        if table.needs_boxes:
            options = self.options()
            has_boxes = self.dataset in paper.CROPPED_SETS or options.bbox_txt
            if not has_boxes or options.cropped is not None:
                return []
        others = set(paper.PAPERS_SETS) - {self.dataset} if self.dataset in paper.PAPERS_SETS else ()
        return [row for row in table.rows if row.dataset not in others]

    def job(self, row, seed):
        """The run of a row."""
        base = self.recipe()
        recipe = replace(base, **row.changes)
        changes = recipes.text_of_changes(base, recipe)
        words = [word for name, text in changes.items() for word in (recipes.flag(name), text)]
        parts = ["{}={}".format(*change) for change in changes.items()]
        parts += [flag.lstrip("-") for flag in row.flags]
        folder = self.folder / (",".join(parts) or "recipe") / f"seed-{seed}"
        scratch = ("--from-scratch",) if self.dataset == "demo" and not self.options().backbone_params else ()
        return Job(folder, recipe, ("--dataset", self.dataset, *scratch, *self.flags, *words, *row.flags), seed)


class Job(NamedTuple):
    """One run: its folder, the recipe it must have, and train.py's flags for that."""

    folder: Path
    recipe: recipes.Recipe
    flags: Tuple[str, ...]
    seed: int

    def options(self):
        """The options of train.py."""
        return arguments.parse(list(self.flags))

    def command(self, gpu, workers=None):
        """The words of train.py that start the run.

        workers : loader processes, unless the job's flags give a number; None for train.py's default. Like the
            device, they do not identify the run.
        """
        own = () if workers is None or self._given_workers() is not None else ("--num-workers", workers)
        words = (*self.flags, "--seed", self.seed, "--gpu", gpu, *own, "--output-dir", self.folder)
        return [os.path.relpath(str(TRAIN)), *map(str, words)]

    def resume(self, gpu, workers=None):
        """The words of train.py that resume it; `workers` as above, instead of those that it was started with."""
        given = self._given_workers()
        workers = workers if given is None else given
        own = () if workers is None else ("--num-workers", workers)
        # --tf32 must be given again: it takes effect before the run's own flags are known.
        again = ["--tf32"] if "--tf32" in self.flags else []
        given, values = {word.split("=")[0] for word in self.flags}, vars(self.options())
        flags = {recipes.flag(name): values[name] for name in MAY_CHANGE + MAY_MOVE}
        again += [f"{flag}={value}" for flag, value in flags.items() if flag in given]
        return [os.path.relpath(str(TRAIN)), *map(str, ("--resume", self.folder, "--gpu", gpu, *own, *again))]

    def _given_workers(self):
        parser = Parser(prog="train.py", add_help=False)
        parser.add_argument("--num-workers")
        return parser.parse_known_args(list(self.flags))[0].num_workers  # None unless it was given

    def state(self):
        """ "missing", "begun" or "finished". Raises InputError if the folder holds a run of another recipe."""
        if not (self.folder / "log.jsonl").exists():
            return "missing"
        wanted, usual = (json.loads(json.dumps(asdict(recipe))) for recipe in (self.recipe, recipes.Recipe()))
        # Fields missing from older runs take their defaults.
        given = dict(usual, **read_json(self.folder / "arguments.json").get("recipe", {}))
        if set(given) - set(usual):
            raise OlderRun(f"{self.folder}: a run of an older version, whose options had other names; remove it")
        differ = [name for name in wanted if given[name] != wanted[name]]
        if differ:
            raise InputError(
                f"{self.folder}: a run with {recipes.flag(differ[0])} {given[differ[0]]}, not {wanted[differ[0]]}; "
                "choose another --name"
            )
        try:
            last = read_json(self.folder / "last.json")
        except InputError:
            return "begun"
        return "finished" if last.get("iteration") == self.recipe.iterations and last.get("recall") else "begun"

    def seconds(self):
        """The duration of the run, summed over its processes; None if it is not known.

        It is recorded with the length of the log. If that has changed since, a process was not measured.
        """
        try:
            record, length = read_json(self.folder / "time.json"), (self.folder / "log.jsonl").stat().st_size
        except (InputError, OSError):
            return None
        return record.get("seconds") if record.get("log_length") == length else None

    def keep_seconds(self, seconds):
        """Records the duration, if the run has a log."""
        if (self.folder / "log.jsonl").exists():
            record = {"seconds": seconds, "log_length": (self.folder / "log.jsonl").stat().st_size}
            with replacing(self.folder / "time.json") as part:
                part.write_text(json.dumps(record) + "\n")

    def scores(self):
        """The scores of a finished run, as JSON; None for any other. Recalls are {K: recall}."""
        if self.state() != "finished":
            return None
        last, best = (read_json(self.folder / name) for name in ("last.json", "best.json"))
        arguments = read_json(self.folder / "arguments.json")
        return {
            "seed": self.seed,
            "last": last["recall"],
            "best": best["recall"],
            "best_iteration": best["iteration"],
            "hardest": hardest_distances(self.folder),
            "data": arguments.get("data"),
            "data_sha1": arguments.get("data_sha1"),
            "weights": weights_of(arguments.get("command", [])),
            "weights_sha1": arguments.get("weights_sha1"),
            "precision": {True: "TensorFloat-32", False: "float32"}.get(arguments.get("tf32_allowed")),
            "warnings": [line[len("warning: ") :] for line in warnings_in(self.folder / "output.txt")],
            "versions": arguments.get("versions"),
            "git_commit": arguments.get("git_commit"),
        }


def hardest_distances(folder):
    """{"positive": mean distance, "negative": the same} of a run, over the last tenth of its log.

    {} if the log does not have them, as that of an older version.
    """
    try:
        steps, _ = curves.read_log(folder)
    except InputError:
        return {}
    steps = steps[-max(1, len(steps) // 10) :]
    signs = ("positive", "negative") if steps else ()
    return {sign: statistics.mean(step["hardest_" + sign] for step in steps) for sign in signs}


def weights_of(command):
    """The initial weights of a run, as text, from its command."""
    words = [part for word in command for part in str(word).split("=", 1)]
    if "--from-scratch" in words:
        return "random"
    files = [file for flag, file in zip(words, words[1:]) if flag == "--backbone-params"]
    return Path(files[-1]).name if files else "the model zoo's"  # the last counts


def read_json(file):
    """The object in a JSON file. Raises InputError if there is none."""
    try:
        record = json.loads(file.read_text())
        if isinstance(record, dict):
            return record
        error = "not an object"
    except (OSError, ValueError) as problem:
        error = problem
    raise InputError(f"{file}: cannot be read ({error})")


def open_study(folder, dataset=None, flags=()):
    """The study in a folder, or a new one. Raises InputError if the folder's has another data set or recipe."""
    for word in flags:
        if word.split("=")[0] in NOT_SHARED:
            raise InputError(f"{word}: set by the tables; give only flags that all runs share after --")
    file = folder / SETTING
    if not file.exists():
        return Study(folder, dataset or "cub200", tuple(flags))
    setting = read_json(file)
    try:
        known = Study(folder, setting["dataset"], tuple(setting["flags"]))
        if not started(folder):  # a first command that failed fixes nothing
            return Study(folder, dataset or known.dataset, tuple(flags) or known.flags)
        known.recipe()
    except InputError as error:
        raise OlderRun(
            f"{file}: train.py does not take these flags ({error}); was it an older version? Choose another "
            f"--name, or remove {folder}"
        )
    except (KeyError, TypeError) as error:
        raise InputError(f"{file}: not the setting of a study ({error})")
    if dataset not in (None, known.dataset):
        raise InputError(f"{folder}: runs on {known.dataset}; choose another --name for {dataset}")
    asked = known._replace(flags=tuple(flags)) if flags else known
    own, new = (dict(experiment(study), **asdict(study.recipe())) for study in (known, asked))
    texts = [
        {name: "not given" if v is None else recipes.text_of(v) for name, v in each.items()} for each in (own, new)
    ]
    moved = {name for name in MAY_MOVE if own[name] and new[name] and not os.path.exists(own[name])}
    differ = [name for name in own if own[name] != new[name] and name not in moved]
    differ = [f"{recipes.flag(name)} {texts[0][name]}, now {texts[1][name]}" for name in differ]
    if differ:
        hint = "choose another --name, or give no flags after --, for those of its runs"
        raise InputError(f"{folder}: its runs have {', '.join(differ)}; {hint}")
    return asked


def experiment(study):
    """The options that decide what a run computes: all but those for where and how fast it does it."""
    options = vars(study.options())
    return {name: options[name] for name in options if name not in (*MAY_CHANGE, "num_workers")}


def started(folder):
    """Whether the study in a folder has a run."""
    return any(folder.glob("*/seed-*/log.jsonl"))


def keep_setting(study):
    """Writes the setting of a study, until its first run has started; later commands read it."""
    file = study.folder / SETTING
    if not file.exists() or not started(study.folder):
        with replacing(file) as part:
            part.write_text(json.dumps({"dataset": study.dataset, "flags": study.flags}, indent=1) + "\n")


@contextmanager
def claimed(folder):
    """Yields a locked file, or None if another process has locked it.

    The lock is released when the last process that has the file open ends. The training process inherits it. So a run
    whose starter was killed is not started a second time while it still trains.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(str(folder / "claim"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        except OSError as error:
            raise InputError(f"{folder}: cannot be locked ({error.strerror}); take an --output-dir on another disk")
        else:
            yield file


class Runner:
    """Runs jobs, one at a time on each GPU. Skips jobs that are finished or claimed by another process."""

    def __init__(self, jobs, gpus):
        self.jobs, self.gpus = jobs, gpus
        # Parallel runs share the cores: OpenMP threads spin while they wait, and each run has loader processes.
        self.threads = max(1, usable_cores() // max(1, sum(gpu < 0 for gpu in gpus)))
        self.workers = max(1, min(MAX_WORKERS, usable_cores() // len(gpus))) if len(gpus) > 1 else None
        self.processes, self.failed, self.stopping = {}, [], threading.Event()

    def run(self):
        """Returns when no job is left that this process could run. Ctrl-C stops the runs, which save their state.

        Raises InputError if runs have failed.
        """
        with ThreadPoolExecutor(len(self.gpus)) as pool:
            try:
                for lane in as_completed([pool.submit(self._lane, gpu) for gpu in self.gpus]):
                    lane.result()
            except BaseException:
                self.stopping.set()
                for process in list(self.processes.values()):
                    process.terminate()
                raise
        if self.failed:
            raise InputError(
                "{} of {} runs failed; see output.txt in {}".format(
                    len(self.failed), len(self.jobs), ", ".join(str(job.folder) for job in self.failed)
                )
            )
        others = [job.folder for job in self.jobs if job.state() != "finished"]
        if others:
            tell(f"{len(others)} of {len(self.jobs)} runs are those of another process: {', '.join(map(str, others))}")

    def words(self, job, gpu):
        """The words of train.py that start or resume a job."""
        words = job.command if job.state() == "missing" else job.resume
        return words(gpu, self.workers)

    def _lane(self, gpu):
        for job in self.jobs:
            if self.stopping.is_set():
                return
            with claimed(job.folder) as claim:
                if claim and job not in self.failed and job.state() != "finished":
                    self._train(job, gpu, claim)

    def _train(self, job, gpu, claim):
        words, start = self.words(job, gpu), time.monotonic()
        new = job.state() == "missing"
        before = 0 if new else job.seconds()
        tell(f"begin  {job.folder}  (--gpu {gpu})")
        # Of an attempt that came to nothing, nothing is kept: its flags may have been other ones.
        with open(str(job.folder / "output.txt"), "wb" if new else "ab") as output:
            process = subprocess.Popen(
                [sys.executable, *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict({"OMP_NUM_THREADS": str(self.threads)}, **os.environ),
                pass_fds=[claim.fileno()],
                start_new_session=True,  # so that Ctrl-C reaches it only through `run`
            )
        self.processes[job] = process
        if self.stopping.is_set():
            process.terminate()
        code = process.wait()
        del self.processes[job]
        seconds = time.monotonic() - start
        job.keep_seconds(None if before is None else before + seconds)
        if self.stopping.is_set():
            tell(f"stop   {job.folder}  (the same command goes on with it)")
        elif code or job.state() != "finished":
            self.failed.append(job)
            tell("failed {}: {}".format(job.folder, last_line(job.folder / "output.txt") or f"exit code {code}"))
        else:
            recalls = "  ".join("R@{} {:.4f}".format(*pair) for pair in job.scores()["last"].items())
            tell("\n       ".join([f"end    {job.folder}  {recalls}  ({seconds:.0f} s)", *warnings_in(output.name)]))


def tell(text):
    print(text, flush=True)


def warnings_in(file):
    """The different warnings in an output of train.py; none if it is not there."""
    text = Path(file).read_bytes() if Path(file).exists() else b""
    text = text.decode(errors="replace").replace("\r", "\n")
    return list(dict.fromkeys(line for line in text.split("\n") if line.startswith("warning: ")))


def last_line(file):
    lines = file.read_text(errors="replace").split("\n")
    return next((line.split("\r")[-1].strip() for line in reversed(lines) if line.strip()), "")
