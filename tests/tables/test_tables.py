"""The paper's tables: rows are runs of train.py, shared between processes, and what comes of them is told right."""

import errno
import hashlib
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import train
from cgd.data import datasets, flags
from cgd.network import descriptions
from cgd.system import environment
from cgd.system.environment import mx
from cgd.system.errors import InputError
from cgd.tables import __main__ as tables
from cgd.tables import paper, plots, rates, results, runs
from cgd.training import arguments, curves, recipes, trainer
from conftest import ROOT, children_of, one_batch, running, wait_until

# Small enough for any network of any row; the changes of a row win over them.
SMALL = ["--backbone", "mobilenet0.25", "--num-workers", "0", "--eval-every", "2"]
SMALL += "--image-width 32 --image-height 32 --batch-size 16 --dim 24".split()


@pytest.fixture(scope="module")
def small_study(many_birds, tmp_path_factory):
    flags = ("--data-dir", str(many_birds), "--iterations", "2", *SMALL)
    return runs.Study(tmp_path_factory.mktemp("studies") / "small", "demo", flags)


def words_of(study, *words):
    """A command of cgd.tables on a study."""
    place = ["--output-dir", study.folder.parent, "--name", study.folder.name, "--dataset", study.dataset]
    return ["-m", "cgd.tables", *place, *words]


def pretend(job, last, best=None, iteration=1, log="", **changes):
    """What a finished run leaves, without the run."""
    job.folder.mkdir(parents=True)
    best = best or last
    done = dict(asdict(job.recipe), **changes)
    arguments = {"command": ["train.py"], "recipe": done, "data": {"Train": [5, 70], "Test": [6, 80]}}
    arguments.update(versions={"mxnet": "1.9.1", "python": "3.11.7"}, git_commit="0123456789abcdef-dirty")
    records = {
        "arguments": arguments,
        "last": {"iteration": job.recipe.iterations, "recall": last},
        "best": {"iteration": iteration, "recall": best},
    }
    (job.folder / "log.jsonl").write_text(log)
    for name, record in records.items():
        (job.folder / (name + ".json")).write_text(json.dumps(record))


def recalls(first):
    return {"1": first, "2": first + 0.1}


def row_named(table, name):
    return next(row for row in paper.TABLES[table].rows if row.name == name)


def effect(job):
    """What a run does: its first batch, the graph of its network, the losses of one step and the weights after it."""
    options = arguments.parse(job.command(-1)[1:])
    recipe, dataset = train.recipe_of(options), flags.load_dataset(options, options.dataset)
    environment.seed_everything(options.seed)
    run = trainer.Trainer(trainer.build(recipe, dataset, [mx.cpu()]), dataset, recipe, ".", [mx.cpu()])
    pictures, identities = one_batch(run.loaders.training.view, run.sampler.batch(0))
    graph = json.loads(mx.sym.Group(outputs_of(run.net(mx.sym.var("data")))).tojson())
    values = run.step(pictures, identities, with_norm=True)
    weights = hashlib.md5()
    for parameter in run.net.collect_params().values():
        weights.update(parameter.data().asnumpy().tobytes())
    return {
        "data": (hashlib.md5(pictures.asnumpy().tobytes()).hexdigest(), identities.tolist()),
        "graph": [(node["op"], node.get("attrs"), node["inputs"]) for node in graph["nodes"] if node["op"] != "null"],
        "loss": (values, weights.hexdigest()),
    }


def outputs_of(nested):
    """The symbols in nested lists and tuples, one after the other."""
    return [each for part in nested for each in outputs_of(part)] if isinstance(nested, (list, tuple)) else [nested]


@pytest.fixture(scope="module")
def effects(small_study):
    """The effect of a job, found once: several tables have some of the same rows."""
    known = {}

    def effect_of(job):
        if job.folder not in known:
            known[job.folder] = effect(job)
        return known[job.folder]

    return effect_of


@pytest.mark.parametrize("name", list(paper.TABLES))
def test_every_row_changes_the_loss_the_graph_or_the_data(name, small_study, effects):
    """Compared with the recipe that the rows change, and with every other row of the table."""
    rows = small_study.rows(paper.TABLES[name])
    assert rows == list(paper.TABLES[name].rows)
    jobs = {job.folder: job for job in (small_study.job(row, 0) for row in (paper.Row("recipe"), *rows))}
    for first, second in itertools.combinations(jobs.values(), 2):
        assert effects(first) != effects(second), f"{first.folder} and {second.folder} train the same"


def test_runs_that_train_alike_have_the_same_effect(small_study, effects):
    """Or a row without effect would not be noticed above."""
    row = paper.Row("another evaluation", {"eval_every": 9})
    assert effect(small_study.job(row, 0)) == effects(small_study.job(paper.Row("recipe"), 0))


# Another value of each field of a recipe; not of those that act later than in the first iteration.
OTHER_VALUES = dict(config="GM", dim=48, backbone="mobilenet0.5", architecture="B", fusion="sum", gem_p=4.0)
OTHER_VALUES.update(learn_p=True, dense_bias=False, freeze_batch_norm=True, image_width=48, image_height=48)
OTHER_VALUES.update(mean=(0.5, 0.4, 0.3), std=(0.3, 0.3, 0.3), resize_size=48, direct_resize_prob=1.0, batch_size=12)
OTHER_VALUES.update(images_per_identity=2, lr=1e-5, backbone_lr_mult=0.5, weight_decay=0.1, margin=0.3)
OTHER_VALUES.update(soft_margin=True, squared=True, ranking_weight=2.0, classification_weight=2.0, temperature=1.0)
OTHER_VALUES.update(smoothing=0.0)
LATER = {"iterations", "milestones", "gamma", "eval_every"}
OF_OTHER_NETWORKS = {"last_stride": 2}  # this one keeps its strides


def test_every_field_of_a_recipe_reaches_the_training(small_study, effects):
    """And soft_margin and squared, which are passed side by side, are not exchanged: their losses differ."""
    assert set(OTHER_VALUES) | LATER | set(OF_OTHER_NETWORKS) == set(recipes.Recipe.__dataclass_fields__)
    plain = effects(small_study.job(paper.Row("recipe"), 0))
    found = {name: effects(small_study.job(paper.Row(name, {name: value}), 0)) for name, value in OTHER_VALUES.items()}
    for name, other in found.items():
        assert other != plain, name
    hinge, soft, squared = (each["loss"][0]["ranking_loss"] for each in (plain, found["soft_margin"], found["squared"]))
    # Here all triplets are active, so that x is the hinge without its margin, and ln(1 + exp(x)) is nearly straight.
    assert hinge > 0.1 and soft == pytest.approx(np.log1p(np.exp(hinge - 0.1)), abs=0.02)
    assert abs(soft - squared) > 0.05


@pytest.mark.parametrize("name", list(paper.TABLES))
def test_every_row_is_rendered(name, small_study, tmp_path):
    study, rows = small_study._replace(folder=tmp_path / "small"), paper.TABLES[name].rows
    for number, row in enumerate(rows):
        if study.job(row, 0).state() == "missing":  # two of the main table's rows are the same run
            pretend(study.job(row, 0), recalls(0.5 + number / 1000))
    record = results.collect(study, [name])
    assert [len(row["runs"]) for row in record["tables"][name]["rows"]] == [1] * len(rows)
    steps = [(step["better"], step["worse"]) for step in record["tables"][name]["order"]]
    assert len(set(steps)) == len(steps) == math.comb(len(paper.TABLES[name].order), 2)  # every pair of the order
    text = results.markdown(record)
    for row in record["tables"][name]["rows"]:
        line = next(line for line in text.splitlines() if line.startswith(f"| {row['name']} |"))
        assert f"{row['runs'][0]['last']['1']:.4f}" in line
    assert json.loads(json.dumps(record)) == record


@pytest.mark.parametrize("dataset", ["cub200", "cars196", "sop", "inshop", "demo", "folders"])
def test_the_words_of_a_job_are_its_recipe(dataset, tmp_path):
    study = runs.Study(tmp_path, dataset, ("--iterations", "7", "--config", "GM"))
    rows = [row for table in paper.TABLES.values() for row in study.rows(table)]
    assert rows
    jobs = [study.job(row, 3) for row in rows]
    for row, job in zip(rows, jobs):
        options = arguments.parse(job.command(-1)[1:])
        assert (options.dataset, options.seed, options.gpu) == (dataset, 3, [-1])
        assert train.recipe_of(options) == job.recipe
        assert {name: getattr(job.recipe, name) for name in row.changes} == row.changes
        assert options.cropped == (False if "--uncropped" in row.flags else None)
        assert job.recipe.iterations == 7
    one_folder_each = {(job.recipe, job.flags): job.folder for job in jobs}
    assert len(set(one_folder_each.values())) == len(one_folder_each) == len({job.folder for job in jobs})


def test_rows_that_a_data_set_does_not_have(tmp_path):
    def names(dataset, table, *flags):
        return [row.name for row in runs.Study(tmp_path, dataset, flags).rows(paper.TABLES[table])]

    assert names("cub200", "main") == ["MG as on CUB200"] and names("inshop", "main") == ["GS as on In-shop"]
    assert len(names("lists", "main")) == 4
    assert names("sop", "crops") == [] and names("cub200", "crops") == ["cropped", "uncropped"]
    assert names("lists", "crops", "--bbox-txt", "boxes.txt") == ["cropped", "uncropped"]
    assert names("cub200", "crops", "--uncropped") == []


def test_dry_run_prints_plain_commands_of_what_is_missing(tmp_path, here):
    study = runs.Study(tmp_path / "cub200", "cub200")
    pretend(study.job(row_named("2", "both"), 0), recalls(0.5))
    begun = study.job(row_named("2", "smoothing"), 0)
    pretend(begun, recalls(0.5))
    (begun.folder / "last.json").unlink()
    done = here(*words_of(study, "--table", 2, "--gpus", 3, "--dry-run"))
    assert done.returncode == 0 and "4 runs: 1 finished, 1 begun, 2 missing" in done.stderr
    folder = tmp_path / "cub200"
    begin = "python train.py --dataset cub200 {0} --seed 0 --gpu 3 --output-dir {1}/{2}/seed-0"
    assert done.stdout.splitlines() == [
        begin.format("--temperature 1.0 --smoothing 0.0", folder, "temperature=1.0,smoothing=0.0"),
        "python train.py --resume {}/temperature=1.0/seed-0 --gpu 3".format(folder),
        begin.format("--smoothing 0.0", folder, "smoothing=0.0"),
    ]
    assert not (folder / "setting.json").exists()


def test_only_the_rows_that_are_asked_for(tmp_path, here):
    """Of each table that has them: the recipe's own row stands in both, and is one run."""
    study = runs.Study(tmp_path / "cub200", "cub200")
    words = words_of(study, "--table", "2,configurations", "--rows", "MG,S,both", "--dry-run")
    folders = [line.split()[-1] for line in here(*words).stdout.splitlines()]
    assert folders == [str(study.folder / name / "seed-0") for name in ("recipe", "config=S")]


def workers_in(words):
    return [words[place + 1] for place, word in enumerate(words) if word == "--num-workers"]


@pytest.mark.parametrize(
    "cores, gpus, flags, expected",
    [
        (12, "0", [], []),  # train.py's default
        (12, "0,1,2", [], ["4"]),
        (64, "0,1", [], ["8"]),
        (2, "-1,-1,-1", [], ["1"]),
        (12, "0,1,2", ["--num-workers", "3"], ["3"]),
        (12, "0,1,2", ["--num-workers=0"], ["0"]),
    ],
)
def test_runs_side_by_side_share_the_cores(cores, gpus, flags, expected, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(runs, "usable_cores", lambda: cores)
    study = runs.Study(tmp_path / "cub200", "cub200", tuple(flags))
    first, second = (study.job(row, 0) for row in paper.TABLES["4"].rows)
    pretend(first, recalls(0.5))
    (first.folder / "last.json").unlink()
    words = words_of(study, "--table", "4", "--gpus={}".format(gpus), "--dry-run", "--", *flags)
    monkeypatch.setattr(sys, "argv", list(map(str, words[1:])))
    tables.main()
    resume, begin = (line.split()[2:] for line in capfd.readouterr().out.splitlines())
    assert resume[0] == "--resume" and workers_in(resume) == expected
    options = arguments.parse(begin)
    assert options.output_dir == str(second.folder) and train.recipe_of(options) == second.recipe
    assert begin.count("--num-workers") <= 1
    if expected:
        assert options.num_workers == int(expected[0])
    else:
        assert "--num-workers" not in begin


# In the place of train.py: takes its time, and stops once where the folder holds `stop`.
STAND_IN = """
import json, sys, time
from pathlib import Path
folder = Path(sys.argv[sys.argv.index("--resume" if "--resume" in sys.argv else "--output-dir") + 1])
time.sleep({seconds})
(folder / "arguments.json").write_text(json.dumps({{"command": sys.argv, "recipe": {{}}}}))
with open(str(folder / "log.jsonl"), "a") as log:
    log.write("a line\\n")
if (folder / "stop").exists():
    (folder / "stop").unlink()
    sys.exit("error: as asked")
for name in ("last", "best"):
    (folder / (name + ".json")).write_text(json.dumps({{"iteration": 1500, "recall": {{"1": 0.5}}}}))
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A job whose train.py is the stand-in; how long that takes."""
    (tmp_path / "stand_in.py").write_text(STAND_IN.format(seconds=0.5))
    monkeypatch.setattr(runs, "TRAIN", tmp_path / "stand_in.py")
    return runs.Study(tmp_path / "cub200", "cub200").job(paper.TABLES["4"].rows[0], 0), 0.5


def test_the_time_of_a_run_adds_up_over_its_stops(stand_in):
    job, seconds = stand_in
    job.folder.mkdir(parents=True)
    (job.folder / "stop").touch()
    start = time.time()
    with pytest.raises(InputError, match="1 of 1 runs failed"):
        runs.Runner([job], [-1]).run()
    first = time.time() - start
    assert job.state() == "begun" and seconds < job.seconds() <= first
    time.sleep(2 * seconds)  # between its processes nothing counts
    start = time.time()
    runs.Runner([job], [-1]).run()
    assert job.state() == "finished" and 2 * seconds < job.seconds() <= first + time.time() - start


def test_the_time_of_a_run_that_no_runner_waited_for_is_not_known(stand_in):
    job, _ = stand_in
    job.folder.mkdir(parents=True)
    (job.folder / "stop").touch()
    with pytest.raises(InputError):
        runs.Runner([job], [-1]).run()
    (job.folder / "stop").touch()
    assert subprocess.call([sys.executable, *job.resume(-1)]) == 1  # a part of it by hand
    assert job.seconds() is None
    runs.Runner([job], [-1]).run()
    assert job.state() == "finished" and job.seconds() is None
    # nor of one that an earlier program left
    (job.folder / "time.json").unlink()
    assert job.seconds() is None


def test_the_number_of_workers_does_not_identify_a_run(stand_in, monkeypatch):
    job, _ = stand_in
    monkeypatch.setattr(runs, "usable_cores", lambda: 6)
    runs.Runner([job], [-1, -1]).run()
    assert workers_in(json.loads((job.folder / "arguments.json").read_text())["command"]) == ["3"]
    assert job.state() == "finished" and "num" not in str(job.folder.relative_to(job.folder.parents[1]))


def test_the_main_table_is_of_the_papers_four_data_sets(tmp_path, here):
    done = here("-m", "cgd.tables", "--table", "main", "--dry-run", "--output-dir", tmp_path, "--seeds", 2)
    assert [line.split()[3] for line in done.stdout.splitlines()] == [
        name for name in ("cub200", "cars196", "sop", "inshop") for _ in range(2)
    ]


def test_two_processes_share_the_work_and_a_third_finds_none(small_study, tmp_path, here):
    study = small_study._replace(folder=tmp_path / "shared")
    words = [sys.executable, *words_of(study, "--table", "4", "--gpus", "-1", "--", *study.flags)]
    alone = dict(os.environ, OMP_NUM_THREADS="1")  # as two that share a machine had better be
    pair = [subprocess.Popen(list(map(str, words)), cwd=str(ROOT), env=alone, stdout=subprocess.PIPE) for _ in "ab"]
    told = [process.communicate(timeout=200)[0].decode() for process in pair]
    assert [process.returncode for process in pair] == [0, 0]
    jobs = [study.job(row, 0) for row in paper.TABLES["4"].rows]
    assert [job.state() for job in jobs] == ["finished"] * 2
    for job in jobs:
        assert (job.folder / "output.txt").read_text().count("run: ") == 1
        assert sum(text.count("end    {}".format(job.folder)) for text in told) == 1
    text = results.markdown(results.collect(study, ["4"]))
    for row, job in zip(paper.TABLES["4"].rows, jobs):
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {row.name} |")]
        assert f"{job.scores()['last']['8']:.4f}" in line
    before = {file: file.stat().st_mtime_ns for job in jobs for file in job.folder.iterdir() if file.name != "claim"}
    # the study remembers its data set and flags
    third = here("-m", "cgd.tables", "--output-dir", tmp_path, "--name", "shared", "--table", "4", "--gpus", "-1")
    assert third.returncode == 0 and third.stdout == "" and "2 finished" in third.stderr
    assert before == {file: file.stat().st_mtime_ns for file in before}


def test_a_failed_run_is_told_and_the_others_are_done(stand_in, capfd):
    job, _ = stand_in
    jobs = [job, job._replace(folder=job.folder.with_name("seed-1"), seed=1)]
    job.folder.mkdir(parents=True)
    (job.folder / "stop").touch()
    with pytest.raises(InputError, match="1 of 2 runs failed; see output.txt in {}$".format(job.folder)):
        runs.Runner(jobs, [-1]).run()
    assert "failed {}: error: as asked\n".format(job.folder) in capfd.readouterr().out
    assert [each.state() for each in jobs] == ["begun", "finished"]


def test_a_stopped_run_goes_on(small_study, tmp_path, here, start):
    flags = (*small_study.flags, "--iterations", "100", "--save-every", "5", "--eval-every", "100")
    study = small_study._replace(folder=tmp_path / "stopped", flags=flags)
    words = words_of(study, "--table", "4", "--gpus", "-1", "--", *flags)
    first, second = (study.job(row, 0) for row in paper.TABLES["4"].rows)
    pretend(second, recalls(0.5))
    with open(tmp_path / "told.txt", "w") as told:
        stopped = start(*words, stderr=told)
    assert wait_until((first.folder / "state.npz").exists, 200)
    (training,) = children_of(stopped.pid)
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait(200) == 130 and "Traceback" not in (tmp_path / "told.txt").read_text()
    assert not os.path.exists("/proc/{}".format(training))
    assert first.state() == "begun"

    done = here(*words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("end    ") == 1 and first.state() == "finished"
    assert "from iteration" in (first.folder / "output.txt").read_text()


def claimable(folder):
    with runs.claimed(folder) as claim:
        return claim is not None


def test_a_run_whose_starter_was_killed_is_not_begun_beside_it(small_study, tmp_path, start):
    study = small_study._replace(folder=tmp_path / "orphan", flags=(*small_study.flags, "--iterations", "1000000"))
    words = [*words_of(study, "--table", "4", "--gpus", "-1", "--", *study.flags)]
    starter = start(*words)
    folder = study.job(paper.TABLES["4"].rows[0], 0).folder
    assert wait_until((folder / "arguments.json").exists, 200)
    (training,) = children_of(starter.pid)
    starter.kill()
    starter.wait()
    try:  # it has a process group of its own
        with runs.claimed(folder) as claim:
            assert claim is None and running(training)
    finally:
        os.kill(training, signal.SIGKILL)
    # Not before its last thread has ended, which may be later than its process is a zombie.
    assert wait_until(lambda: claimable(folder))


def test_a_claim_lasts_as_long_as_whoever_inherited_it(tmp_path):
    with runs.claimed(tmp_path) as claim:
        assert claim
        with runs.claimed(tmp_path) as other:
            assert other is None
        heir = subprocess.Popen(["sleep", "60"], pass_fds=[claim.fileno()])
    with runs.claimed(tmp_path) as other:
        assert other is None
    heir.kill()
    heir.wait()
    with runs.claimed(tmp_path) as other:
        assert other


def test_runs_that_another_process_makes_are_told(small_study, tmp_path, capsys):
    job = small_study._replace(folder=tmp_path).job(paper.Row("recipe"), 0)
    with runs.claimed(job.folder):
        runs.Runner([job], [-1]).run()
    assert f"1 of 1 runs are those of another process: {job.folder}\n" in capsys.readouterr().out


def test_a_disk_without_locks_is_one_line(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(runs.fcntl, "flock", refuse)
    with pytest.raises(InputError, match="cannot be locked .Function not implemented.; take an --output-dir"):
        with runs.claimed(tmp_path):
            pass


def test_a_folder_with_another_recipe_is_left_alone(tmp_path):
    job = runs.Study(tmp_path, "cub200").job(paper.TABLES["1"].rows[0], 0)
    pretend(job, recalls(0.5), lr=0.5)
    with pytest.raises(InputError, match="--lr 0.5, not 0.0001"):
        job.state()


def test_a_run_of_a_program_that_lacked_a_field_had_its_default(tmp_path):
    study = runs.Study(tmp_path, "cub200")
    trained, frozen = (study.job(row, 0) for row in paper.TABLES["batchnorm"].rows)
    for job in (trained, frozen):
        pretend(job, recalls(0.5))
        record = json.loads((job.folder / "arguments.json").read_text())
        del record["recipe"]["freeze_batch_norm"]
        (job.folder / "arguments.json").write_text(json.dumps(record))
    assert trained.state() == "finished"
    with pytest.raises(InputError, match="a run with --freeze-batch-norm False, not True"):
        frozen.state()


def test_a_study_keeps_its_setting(tmp_path):
    study = runs.open_study(tmp_path / "a", "demo", ["--iterations", "5", "--num-workers", "1"])
    runs.keep_setting(study)
    assert runs.open_study(tmp_path / "a") == study
    # before a run was started other flags replace these
    other = runs.open_study(tmp_path / "a", "demo", ["--iterations", "6"])
    runs.keep_setting(other)
    assert runs.open_study(tmp_path / "a").recipe().iterations == 6
    runs.keep_setting(runs.open_study(tmp_path / "a", "folders", ["--iterations", "6"]))
    assert runs.open_study(tmp_path / "a", None, ["--lr", "1"]).dataset == "folders"
    runs.keep_setting(study)
    (tmp_path / "a" / "recipe" / "seed-0").mkdir(parents=True)
    (tmp_path / "a" / "recipe" / "seed-0" / "log.jsonl").touch()
    for words, told in (
        (["--iterations", "5", "--uncropped"], "a: its runs have --cropped not given, now no; choose another"),
        (["--iterations", "7", "--dim", "30"], "a: its runs have --dim .*, now 30, --iterations 5, now 7; choose"),
    ):
        with pytest.raises(InputError, match=told):
            runs.open_study(tmp_path / "a", "demo", words)
    # what does not change the recipe may differ from machine to machine
    elsewhere = runs.open_study(tmp_path / "a", "demo", ["--iterations", "5", "--num-workers", "9"])
    assert elsewhere.recipe() == study.recipe() and elsewhere.flags[-1] == "9"
    moved = ["--iterations", "5", "--data-dir", "moved", "--skip-unreadable", "3"]
    with pytest.raises(InputError, match="its runs have --data-dir not given, now moved"):
        runs.open_study(tmp_path / "a", "demo", moved)
    job = runs.open_study(tmp_path / "a", "demo", ["--iterations", "5", "--skip-unreadable", "3"])
    assert "--skip-unreadable=3" in job.job(paper.TABLES["1"].rows[0], 0).resume(0)
    with pytest.raises(InputError, match="runs on demo; choose another --name for cub200"):
        runs.open_study(tmp_path / "a", "cub200")
    with pytest.raises(InputError, match="its runs have --iterations 5, now 6"):
        runs.open_study(tmp_path / "a", "demo", ["--iterations", "6"])
    with pytest.raises(InputError, match="--seed: set by the tables"):
        runs.open_study(tmp_path / "b", "demo", ["--seed", "6"])
    (tmp_path / "a" / "setting.json").write_text("[]")
    with pytest.raises(InputError, match="setting.json"):
        runs.open_study(tmp_path / "a")


def test_the_images_of_a_study_may_move_but_not_be_exchanged(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    flags = {name: ["--data-dir", str(tmp_path / name)] for name in ("old", "new")}
    runs.keep_setting(runs.open_study(tmp_path / "a", "folders", flags["old"]))
    (tmp_path / "a" / "recipe" / "seed-0").mkdir(parents=True)
    (tmp_path / "a" / "recipe" / "seed-0" / "log.jsonl").touch()
    with pytest.raises(InputError, match="its runs have --data-dir .*old, now .*new"):
        runs.open_study(tmp_path / "a", None, flags["new"])
    (tmp_path / "old").rmdir()
    job = runs.open_study(tmp_path / "a", None, flags["new"]).job(paper.TABLES["1"].rows[0], 0)
    assert f"--data-dir={tmp_path / 'new'}" in job.resume(0)


def test_a_paired_difference_by_hand():
    # Seeds 1, 2 and 4 are in both rows: 0.1, 0.2, -0.3. Mean 0, squared deviations 0.01 + 0.04 + 0.09 over n - 1 = 2.
    first, second = {0: 9.0, 1: 0.5, 2: 0.6, 4: 0.4}, {4: 0.7, 2: 0.4, 1: 0.4, 3: -9.0}
    paired = results.paired_difference(first, second)
    assert (paired["seeds"], paired["first_better"]) == ([1, 2, 4], 2)
    assert paired["difference"] == pytest.approx(0) and paired["deviation"] == pytest.approx(0.07**0.5)
    # what a seed does to both rows alike is not in the deviation
    alike = results.paired_difference({0: 0.25, 1: 0.75}, {0: 0.125, 1: 0.625})
    assert (alike["difference"], alike["deviation"], alike["first_better"]) == (0.125, 0, 2)
    equal = results.paired_difference({7: 0.5}, {7: 0.5})
    assert equal == {"seeds": [7], "difference": 0, "deviation": None, "first_better": 0, "ties": 1}
    assert results._difference(equal) == "+0.0000, better in 0 of 1 seed, equal in 1"
    apart = results.paired_difference({0: 0.5}, {1: 0.4})
    assert apart == {"seeds": [], "difference": None, "deviation": None, "first_better": 0, "ties": 0}


def study_with(tmp_path, table, scores, dataset="cub200", **more):
    """A study whose rows have pretended runs: {row: [R@1 of each seed]}."""
    study = runs.Study(tmp_path / dataset, dataset)
    for name, firsts in scores.items():
        for seed, first in enumerate(firsts):
            pretend(study.job(row_named(table, name), seed), recalls(first), recalls(first + 0.005), **more)
    return study


def test_warnings_of_runs_are_rendered(tmp_path):
    study = study_with(tmp_path, "1", {"both": [0.5, 0.5], "ranking loss alone": [0.25]})
    (study.job(row_named("1", "both"), 1).folder / "output.txt").write_text(
        "run: there\n 5%\rwarning: it may have collapsed\n 6%\rwarning: it may have collapsed\n"
    )
    text = results.markdown(results.collect(study, ["1"]))
    assert text.count("- both, seed 1: it may have collapsed\n") == 1 and "seed 0:" not in text


def test_rows_of_other_seeds_are_sorted_by_those_that_all_have(tmp_path):
    """MG's seed 1 is far better: by its own mean it would be the first."""
    study = study_with(tmp_path, "configurations", {"S": [0.5], "MG": [0.25, 1.0]})
    line = next(each for each in results.digest(results.collect(study), "x.md").splitlines() if "MG" in each)
    assert line.index("S 0.5000 (seed 0)") < line.index("MG 0.6250 ± 0.5303 (seeds 0, 1)")


def test_rendered_figures_against_numpy(tmp_path):
    scores = {"both": [0.7, 0.71, 0.74], "ranking loss alone": [0.6, 0.65, 0.61]}
    study = study_with(tmp_path, "1", scores)
    record = results.collect(study)
    # no other has two rows to compare; the main table has one here
    assert list(record["tables"]) == ["1", "main"]
    rows = {row["name"]: row for row in record["tables"]["1"]["rows"]}
    for name, firsts in scores.items():
        assert rows[name]["last"]["1"] == pytest.approx([np.mean(firsts), np.std(firsts, ddof=1)])
        assert rows[name]["best"]["1"][0] == pytest.approx(np.mean(firsts) + 0.005)
        assert [run["seed"] for run in rows[name]["runs"]] == [0, 1, 2]
    (step,) = record["tables"]["1"]["order"]
    differences = np.subtract(*scores.values())
    assert step["difference"] == pytest.approx(differences.mean()) and step["seeds"] == [0, 1, 2]
    assert step["deviation"] == pytest.approx(differences.std(ddof=1)) and step["first_better"] == 3
    text = results.markdown(record)
    assert "| both | - | 0, 1, 2 | 0.7167 ± 0.0208 | 0.8167 ± 0.0208 | 0.7217 ± 0.0208 | - |" in text
    assert "| classification loss alone | `--ranking-weight 0.0` | - | - | - | - | - |" in text
    paired = "+0.0967 ± 0.0351, better in 3 of 3 seeds"
    assert "| both > ranking loss alone | {} |\n".format(paired) in text and "paired by seed" in text
    rows = "'ranking loss alone,both,MG as on CUB200'"
    assert f"`python -m cgd.tables --table 1,main --rows {rows} --name cub200 --dataset cub200 --seeds 3`" in text
    assert "train 70 images of 5 identities, test 80 images of 6 identities" in text
    assert "commit 012345678-dirty" in text and "Initial weights: the model zoo's." in text
    line = next(line for line in results.digest(record, "all.md").splitlines() if "Table 1" in line)
    spreads = "both 0.7167 ± 0.0208 · ranking loss alone 0.6200 ± 0.0265"
    assert "{} | both > ranking loss alone: {} |".format(spreads, paired) in line


def test_rows_without_a_common_seed_have_no_difference(tmp_path):
    study = runs.Study(tmp_path / "cub200", "cub200")
    for seed, row in enumerate(("both", "ranking loss alone")):
        pretend(study.job(row_named("1", row), seed), recalls(0.5))
    record = results.collect(study)
    assert "| both > ranking loss alone | no seed in common |\n" in results.markdown(record)
    digest = results.digest(record, "all.md")
    assert "both > ranking loss alone: no seed in common |" in digest
    # a mean over other seeds cannot be compared, and says which ones it has
    assert "ranking loss alone 0.5000 (seed 1) · both 0.5000 (seed 0)" in digest


def test_all_pairs_of_the_papers_order_are_compared(tmp_path):
    """Of Table 2 the first and the last row, with one between them unfinished: by hand."""
    scores = {"both": [0.5, 0.6], "smoothing": [0.45, 0.5], "neither": [0.4, 0.5]}
    record = results.collect(study_with(tmp_path, "2", scores))
    steps = {(step["better"], step["worse"]): step["difference"] for step in record["tables"]["2"]["order"]}
    expected = {("both", "smoothing"): 0.075, ("both", "neither"): 0.1, ("smoothing", "neither"): 0.025}
    assert steps == pytest.approx(expected)


def test_a_table_shows_where_the_ranking_loss_has_collapsed(tmp_path):
    """Means of the last tenth of each log (2 lines of 20), then over seeds: 0.3 and 0.5 give 0.4."""
    study = runs.Study(tmp_path / "sop", "sop", ("--eval-every", "9300"))
    line = dict.fromkeys(curves.LOGGED.split(), 0.5)
    for seed, tail in enumerate([(0.2, 0.4), (0.4, 0.6)]):
        lines = [dict(line, iteration=n, hardest_positive=p) for n, p in enumerate((9.0,) * 18 + tail)]
        log = "\n".join(map(json.dumps, lines))
        pretend(study.job(row_named("4", "concat"), seed), recalls(0.5), log=log)
    pretend(study.job(row_named("4", "sum"), 0), recalls(0.4), log=json.dumps(dict(lines[0], hardest_negative=1e-5)))
    text = results.markdown(results.collect(study))
    assert "| concat | - | 0, 1 | 0.5000 ± 0.0000 | 0.6000 ± 0.0000 | 0.4 / 0.5 |" in text
    assert "| sum | `--fusion sum` | 0 | 0.4000 | 0.5000 | 9 / 1e-05 |" in text
    assert "several evaluations" not in text  # one only: "best" would be the same score again


def test_an_order_of_groups_compares_the_best_of_each(tmp_path):
    names = [row.name for row in paper.TABLES["configurations"].rows]
    scores = {name: [0.5 + 0.01 * names.index(name)] for name in names}
    scores["M"] = [0.9]
    study = study_with(tmp_path, "configurations", scores)
    (step,) = results.collect(study)["tables"]["configurations"]["order"]
    assert (step["better"], step["worse"], step["first_better"]) == ("GM", "M", 0)
    record = results.collect(study)
    line = "| GM (best of 6) > M (best of 3) | -0.3200, better in 0 of 1 seed |\n\nBest of several rows: selected"
    assert line in results.markdown(record)
    assert "GM (best of 6) > M (best of 3): -0.3200" in results.digest(record, "all.md")
    # a row that stands alone in its entry was not selected
    alone = results.collect(study_with(tmp_path, "4", {"concat": [0.5], "sum": [0.4]}, "sop"))
    assert "selected by this same score" not in results.markdown(alone)
    assert "(best of" not in results.digest(alone, "all.md")
    # of the pairs that were run, and it says of how many
    for pair in ("GM", "SM"):
        (study.job(row_named("configurations", pair), 0).folder / "last.json").unlink()
    record = results.collect(study)
    assert "| MG (best of 4 run of 6) > M (best of 3) | -0.3300, better in 0 of 1 seed |" in results.markdown(record)
    assert "MG (best of 4 run of 6) > M (best of 3): -0.3300" in results.digest(record, "all.md")
    for pair in ("MS", "SG", "GS", "MG"):
        (study.job(row_named("configurations", pair), 0).folder / "last.json").unlink()
    assert results.collect(study)["tables"]["configurations"]["order"] == []


def test_a_row_that_was_not_selected_is_not_said_to_be(tmp_path):
    """Of six pairs one was run: nothing was selected among them."""
    scores = {"S": [0.5], "M": [0.4], "G": [0.3], "MG": [0.6]}
    record = results.collect(study_with(tmp_path, "configurations", scores))
    entry = "| MG (only one of 6 that was run) > S (best of 3) | +0.1000, better in 1 of 1 seed |\n"
    assert entry in results.markdown(record)
    assert "MG (only one of 6 that was run) > S (best of 3): +0.1000" in results.digest(record, "all.md")


def test_the_best_row_is_chosen_over_the_seeds_that_all_have(tmp_path):
    study = study_with(tmp_path, "configurations", {"S": [0.5, 0.5], "MG": [0.6, 0.62]})
    pretend(study.job(row_named("configurations", "GM"), 0), recalls(0.595))
    pretend(study.job(row_named("configurations", "GM"), 7), recalls(0.9))
    (step,) = results.collect(study)["tables"]["configurations"]["order"]
    assert step["better"] == "MG" and step["seeds"] == [0, 1]  # 0.600 and 0.595 with seed 0, which all have
    (study.job(row_named("configurations", "GM"), 0).folder / "last.json").unlink()
    (step,) = results.collect(study)["tables"]["configurations"]["order"]
    assert step["better"] == "GM" and step["seeds"] == []  # no common seed: each by its own, and it says so


@pytest.mark.parametrize(
    "key, before, now, what",
    [
        ("weights_sha1", "aa", "bb", "initial weights"),
        ("data_sha1", {"train": "aa"}, {"train": "bb"}, "images, classes or boxes"),
        ("tf32_allowed", False, True, "precision"),
    ],
)
def test_runs_of_other_origins_are_not_put_into_one_table(key, before, now, what, tmp_path):
    study = study_with(tmp_path, "4", {"concat": [0.5, 0.6], "sum": [0.4]})

    def change(row, seed, value):
        file = study.job(row_named("4", row), seed).folder / "arguments.json"
        file.write_text(json.dumps(dict(json.loads(file.read_text()), **{key: value})))

    change("concat", 0, before)
    change("sum", 0, before)
    results.collect(study)  # what a run of an older version does not say is not compared
    change("sum", 0, now)
    with pytest.raises(InputError, match="sum.seed-0: trained with other {} than .*recipe.seed-0".format(what)):
        results.collect(study)


def test_random_and_pretrained_weights_are_not_put_into_one_table(tmp_path):
    study = study_with(tmp_path, "4", {"concat": [0.5], "sum": [0.4]})
    starts = {"concat": (["train.py", "--from-scratch"], None), "sum": (["train.py"], "aa")}
    for row, (words, sha1) in starts.items():
        file = study.job(row_named("4", row), 0).folder / "arguments.json"
        file.write_text(json.dumps(dict(json.loads(file.read_text()), command=words, weights_sha1=sha1)))
    with pytest.raises(InputError, match="trained with other initial weights"):
        results.collect(study)


def test_a_backbone_has_weights_of_its_own(tmp_path):
    study = study_with(tmp_path, "backbones", {"resnet50_v1": [0.5], "bn_inception": [0.4]})
    for row, value in (("resnet50_v1", "aa"), ("bn_inception", "bb")):
        file = study.job(row_named("backbones", row), 0).folder / "arguments.json"
        file.write_text(json.dumps(dict(json.loads(file.read_text()), weights_sha1=value)))
    assert len(results.collect(study)["tables"]["backbones"]["rows"]) == 4


def test_a_random_backbone_is_not_compared_with_another_pretrained_one(tmp_path):
    study = study_with(tmp_path, "backbones", {"resnet50_v1": [0.5], "bn_inception": [0.4]})
    file = study.job(row_named("backbones", "bn_inception"), 0).folder / "arguments.json"
    file.write_text(json.dumps(dict(json.loads(file.read_text()), command=["train.py", "--from-scratch"])))
    with pytest.raises(InputError, match="trained with other initial weights, random or not, than"):
        results.collect(study)


def test_cropped_and_whole_pictures_of_one_study_are_compared(tmp_path):
    study = study_with(tmp_path, "crops", {"cropped": [0.5], "uncropped": [0.4]})
    for row in ("cropped", "uncropped"):  # without boxes the checksum is another one
        file = study.job(row_named("crops", row), 0).folder / "arguments.json"
        file.write_text(json.dumps(dict(json.loads(file.read_text()), data_sha1={"test": row})))
    assert "| uncropped | `--uncropped` | 0 | 0.4000 |" in results.markdown(results.collect(study, ["crops"]))


@pytest.mark.parametrize(
    "words, told",
    [
        (["--name", "new"], "--name new: begins a new study; expected --dataset, too"),
        (["--dataset", "folders", "--data-dir", "a"], "--data-dir a; flags of train.py go after --"),
        (["--dataset", "cub200", "--", "--data-dir", "gone"], "gone: no such folder"),
        (["--dataset", "demo", "--", "--data-dir", "BIRDS", "--batch-size", "128"], "a batch needs 32 identities"),
    ],
)
def test_what_no_run_can_use_is_told_before_the_first(words, told, many_birds, tmp_path, here):
    words = [word.replace("BIRDS", str(many_birds)) for word in words]
    result = here("-m", "cgd.tables", "--table", "1", "--output-dir", tmp_path, *words)
    assert result.returncode == 2 and told in result.stderr.splitlines()[-1]
    assert "begin" not in result.stdout


@pytest.mark.parametrize("flags, whole", [((), False), (("--uncropped",), True)])
def test_other_images_than_those_of_earlier_runs_are_told_before_the_next(many_birds, tmp_path, flags, whole):
    study = runs.Study(tmp_path / "s", "demo", ("--data-dir", str(many_birds), *flags, *SMALL))
    job, missing = (study.job(row, 0) for row in paper.TABLES["4"].rows)
    dataset = datasets.load("demo", many_birds)
    now = datasets.digests(datasets.without_boxes(dataset) if whole else dataset)
    pretend(job, recalls(0.5))
    file = job.folder / "arguments.json"

    def say(sha1):
        file.write_text(json.dumps(dict(json.loads(file.read_text()), data_sha1=sha1)))

    tables.check_data([job, missing])  # an older version did not say it
    say(now)
    tables.check_data([job, missing])
    say(dict(now, test="another"))
    with pytest.raises(InputError, match="recipe/seed-0: had other images, classes or boxes than there are now"):
        tables.check_data([missing, job])
    tables.check_data([job])  # nothing is left to run


def test_random_and_pretrained_runs_may_be_in_different_tables(tmp_path):
    study = runs.Study(tmp_path / "cub200", "cub200", ("--backbone", "resnet18_v1"))
    for name in ("concat", "sum"):
        job = study.job(row_named("4", name), 0)
        pretend(job, recalls(0.5))
        file = job.folder / "arguments.json"
        file.write_text(json.dumps(dict(json.loads(file.read_text()), command=["train.py", "--from-scratch"])))
    for name in ("resnet50_v1", "bn_inception"):
        pretend(study.job(row_named("backbones", name), 0), recalls(0.5))
    assert {"4", "backbones"} <= set(results.collect(study)["tables"])


def test_warnings_of_a_run_are_told_at_its_end(stand_in, capfd):
    job, _ = stand_in
    text = 'print("warning: odd\\n  7%\\rwarning: odd\\nsome warning: no\\nwarning: even")\n'
    runs.TRAIN.write_text(text + runs.TRAIN.read_text())
    job.folder.mkdir(parents=True)
    (job.folder / "output.txt").write_text("warning: of an earlier process\n")
    runs.Runner([job], [-1]).run()
    told = capfd.readouterr().out.splitlines()
    assert told[1].startswith(f"end    {job.folder}  R@1 0.5000")
    assert [line.strip() for line in told[2:]] == ["warning: odd", "warning: even"]


def test_a_resumed_run_does_not_lose_its_warnings(stand_in, capfd):
    """A process that resumes a run does not repeat them."""
    job, _ = stand_in
    job.folder.mkdir(parents=True)
    (job.folder / "stop").touch()
    with pytest.raises(InputError):
        runs.Runner([job], [-1]).run()
    with open(str(job.folder / "output.txt"), "a") as output:
        output.write("warning: the triplet loss has collapsed\n")
    capfd.readouterr()
    runs.Runner([job], [-1]).run()
    assert capfd.readouterr().out.splitlines()[-1].strip() == "warning: the triplet loss has collapsed"


def test_nothing_to_plot_is_told(tmp_path, monkeypatch, capfd):
    runs.keep_setting(study_with(tmp_path, "4", {"concat": [0.5], "sum": [0.4]}))
    monkeypatch.setattr(sys, "argv", ["tables", "--output-dir", str(tmp_path), "--plot"])
    tables.main()
    assert capfd.readouterr().err == "nothing to plot: run --table configurations or dimensions\n"


@pytest.mark.parametrize("missing", ["recall", "iterations", ""])
def test_a_run_is_finished_after_its_last_evaluation(tmp_path, missing):
    job = runs.Study(tmp_path / "cub200", "cub200").job(paper.TABLES["4"].rows[0], 0)
    assert job.state() == "missing"
    pretend(job, recalls(0.5))
    last = json.loads((job.folder / "last.json").read_text())
    changes = {"recall": {"recall": None}, "iterations": {"iteration": last["iteration"] - 1}, "": {}}[missing]
    (job.folder / "last.json").write_text(json.dumps(dict(last, **changes)))
    assert job.state() == ("begun" if missing else "finished") and (job.scores() is None) == bool(missing)


def test_the_compared_score_is_that_of_the_smallest_k(tmp_path):
    study = runs.Study(tmp_path / "cub200", "cub200")
    for name, figures in (("concat", {"10": 0.9, "2": 0.5}), ("sum", {"10": 0.95, "2": 0.4})):
        pretend(study.job(row_named("4", name), 0), figures)
    (step,) = results.collect(study)["tables"]["4"]["order"]
    assert step["difference"] == pytest.approx(0.1) and step["first_better"] == 1


def test_the_last_evaluation_counts_in_the_time_of_a_run():
    recipe = recipes.replace(recipes.RECIPES["demo"], iterations=150, eval_every=100, batch_size=10)
    assert rates.Rates(100.0, 50.0).seconds(recipe, 200) == 150 * 10 / 100 + 2 * 200 / 50


def test_a_row_can_be_asked_for_by_its_name():
    """A comma separates names."""
    assert not [row.name for table in paper.TABLES.values() for row in table.rows if "," in row.name]


def test_milestones_that_a_study_does_not_reach_are_told_once(tmp_path, here):
    study = runs.Study(tmp_path / "photos", "folders")
    done = here(*words_of(study, "--table", "1,4", "--dry-run", "--", "--iterations", 300, "--data-dir", tmp_path))
    assert done.returncode == 0 and done.stderr.count("warning: --milestones 400,800: not reached in 300") == 1


def test_the_papers_figures_stand_only_beside_their_own_data_set(tmp_path):
    official = study_with(tmp_path, "main", {"MG as on CUB200": [0.25]})
    text = results.markdown(results.collect(official, ["main"]))
    assert "| MG as on CUB200 | - | 0.7681 | 0.8484 | 0 | 0.2500 |" in text
    other = runs.Study(tmp_path / "demo", "demo")
    pretend(other.job(row_named("main", "MG as on CUB200"), 0), recalls(0.25))
    assert "| 0.7681 " not in results.markdown(results.collect(other, ["main"]))
    assert "main" not in results.collect(other)["tables"]  # unless it is asked for
    others = "--backbone mobilenet0.25, --image-width 112, --image-height 112, --dim 96, --last-stride 2, --uncropped"
    others += ", --fusion sum, --architecture B, --gem-p 1, --learn-p yes"
    for words in (*map(str.split, others.split(",")), ["--mean", "0,0,0"], ["--test-txt", "own.txt"]):
        study = runs.Study(tmp_path / words[0], "cub200", tuple(words))
        pretend(study.job(row_named("main", "MG as on CUB200"), 0), recalls(0.25))
        assert "| 0.7681 " not in results.markdown(results.collect(study, ["main"]))


def test_render_and_plot_from_the_command_line(tmp_path, monkeypatch, figures):
    study = study_with(tmp_path, "dimensions", {"96": [0.5, 0.6], "384": [0.7, 0.6]})
    for seed, (s, mg) in enumerate([(0.5, 0.75), (0.25, 0.5)]):
        pretend(study.job(row_named("configurations", "S"), seed), recalls(s))
        pretend(study.job(row_named("configurations", "MG"), seed), recalls(mg))
    runs.keep_setting(study)
    readme = tmp_path / "README.md"
    marks = "<!-- results: cub200 -->\n{}<!-- end of results: cub200 -->\nafter\n"
    readme.write_text("before\n" + marks.format("old\n"))
    words = ["--output-dir", tmp_path, "--results", tmp_path / "out", "--render", "--plot", "--readme", readme]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", list(map(str, ["tables", *words])))
    tables.main()
    record = json.loads((tmp_path / "out" / "cub200.json").read_text())
    assert record == results.collect(study)
    assert (tmp_path / "out" / "cub200.md").read_text() == results.markdown(record)
    text = results.digest(record, Path("out/cub200.md"))  # relative to the README
    assert readme.read_text() == "before\n" + marks.format(text + "\n")
    for name in ("configurations", "dimensions"):
        with Image.open(str(tmp_path / "out" / "cub200-{}.png".format(name))) as picture:
            assert min(picture.size) > 300 and np.asarray(picture.convert("L")).std() > 10
    axes, curves = (figure.axes[0] for figure in figures)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["S", "MG"]
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[0, 50], [0, 25]], [[1, 75], [1, 50]]]
    means = [lines.get_segments()[0][:, 1].tolist() for lines in axes.collections]
    assert means == [[37.5, 37.5], [62.5, 62.5]]
    scores = {1536: (75, 50), 96: (50, 60), 384: (70, 60)}  # the recipe has 1536 dimensions, and is MG
    for (line, _, (bars,)), more in zip(curves.containers, (0, 10)):  # R@1, R@2
        assert len(bars.get_segments()) == len(scores)
        for (size, mean), ((_, low), (_, high)) in zip(line.get_xydata(), bars.get_segments()):
            deviation = np.std(scores[size], ddof=1)
            expected = np.mean(scores[size]) + more + deviation * np.array([-1, 0, 1])
            assert [low, mean, high] == pytest.approx(expected.tolist())
    readme.write_text("no marks")
    shutil.rmtree(str(tmp_path / "out"))
    with pytest.raises(InputError, match="expected the lines <!-- results: cub200 -->"):
        tables.main()
    assert readme.read_text() == "no marks" and not (tmp_path / "out").exists()
    runs.keep_setting(study_with(tmp_path, "4", {"concat": [0.5], "sum": [0.4]}, "demo"))
    readme.write_text(marks.format("old\n"))
    with pytest.raises(InputError, match="expected the lines <!-- results: demo -->"):  # of the second study
        tables.main()
    assert readme.read_text() == marks.format("old\n") and not (tmp_path / "out").exists()


def test_the_main_table_of_several_data_sets(tmp_path, monkeypatch, capfd):
    for dataset, name, firsts in (("cub200", "MG as on CUB200", [0.25, 0.75]), ("sop", "SG as on SOP", [0.5])):
        runs.keep_setting(study_with(tmp_path, "main", {name: firsts}, dataset))
    other = {"MG as on CUB200": [0.5], "SG as on SOP": [0.5]}
    runs.keep_setting(study_with(tmp_path, "main", other, "demo"))  # none of the paper's
    runs.keep_setting(runs.Study(tmp_path / "cars196", "cars196"))  # nothing finished: the others are rendered
    monkeypatch.setattr(sys, "argv", ["tables", "--output-dir", str(tmp_path), "--render"])
    tables.main()
    assert "cars196: no finished runs" in capfd.readouterr().err
    text = (tmp_path / "main-table.md").read_text()
    spread = "± {:.4f}".format(np.std([0.25, 0.75], ddof=1))
    expected = "| cub200 | MG as on CUB200 | 2 | 1, 2 | 0.5000 {0}, 0.6000 {0} | 0.7681, 0.8484 | 0.5050"
    assert expected.format(spread) in text
    assert "| sop | SG as on SOP | 1 | 1, 2 | 0.5000, 0.6000 | - | 0.5050 |" in text
    assert results.BEST in text and "without changes" not in text
    rows = json.loads((tmp_path / "main-table.json").read_text())
    assert [(row["study"], len(row["runs"])) for row in rows] == [("cub200", 2), ("sop", 1)]
    assert (tmp_path / "sop" / "sop.md").exists()


def test_plot_without_matplotlib_is_one_line(tmp_path, monkeypatch):
    study = study_with(tmp_path, "dimensions", {"96": [0.5], "384": [0.7]})
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match="pip install matplotlib"):
        plots.draw(results.collect(study), tmp_path)


def test_list_shows_rows_data_and_times(small_study, monkeypatch, capfd):
    asked, flags = [], [*small_study.flags, "--micro-batch", "5"]
    words = words_of(small_study, "--list", "--table", "1,backbones", "--gpus", "-1", "--", *flags)
    monkeypatch.setattr(sys, "argv", list(map(str, words[1:])))
    monkeypatch.setattr(rates, "measure", lambda *given: asked.append(given[2]) or rates.Rates(3.2, 16.0))
    tables.main()
    told = capfd.readouterr().out
    assert "data: demo (train 32 images of 8, test 32 images of 8), found" in told
    for name in ("1", "backbones"):
        for row in paper.TABLES[name].rows:
            assert "    {:<26} ".format(row.name) in told
    assert set(asked) == {5}
    # 2 x 16 pictures at 3.2 a second, one evaluation of 32 at 16
    assert "    both                       12 s\n" in told
    assert "cpu" in told


def test_list_of_no_table_measures_nothing_and_says_why_a_recipe_cannot_be_trained(small_study, monkeypatch, capfd):
    monkeypatch.setattr(rates, "measure", None)
    flags = [*small_study.flags, "--batch-size", "64"]
    words = words_of(small_study._replace(folder=small_study.folder / "large"), "--list", "--", *flags)
    monkeypatch.setattr(sys, "argv", list(map(str, words[1:])))
    tables.main()
    told = capfd.readouterr().out
    assert "found\nthe recipe cannot be trained on it: a batch needs" in told and "there are 8" in told
    assert all(f"--table {name} " in told for name in paper.TABLES if name not in ("main", "crops"))
    assert "--table NAME estimates the times" in told


def test_list_says_what_is_missing(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(rates, "measure", lambda *_: rates.Rates(100.0, 1000.0))
    words = ["tables", "--list", "--table", "main", "--output-dir", tmp_path, "--gpus", "-1"]
    monkeypatch.setattr(sys, "argv", list(map(str, words)))
    monkeypatch.chdir(tmp_path)
    tables.main()
    told = capfd.readouterr().out
    assert "sop (train 59,551 images of 11,318, test 60,502 images of 11,316), missing: data/Stanford" in told
    # 1,500 x 128 pictures at 100 a second, 15 evaluations of 5,924 at 1,000
    seconds = 1500 * 128 / 100 + 15 * 5924 / 1000
    assert "{:<26} {:.0f} min".format("MG as on CUB200", seconds / 60) in told


def test_a_study_that_is_not_there_is_one_line(tmp_path, here):
    words = ["-m", "cgd.tables", "--render", "--output-dir", tmp_path]
    assert "nosuch: no such study; --table runs one" in here(*words, "--name", "nosuch").stderr
    runs.keep_setting(runs.Study(tmp_path / "mine", "demo"))
    result = here(*words, "--name", "nosuch")
    assert result.returncode == 2 and result.stderr.splitlines()[-1].endswith("nosuch: no such study; there are mine")


def test_list_has_the_time_of_a_finished_run(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(rates, "measure", lambda *_: rates.Rates(100.0, 1000.0))
    study = study_with(tmp_path, "2", {"neither": [0.5], "smoothing": [0.5], "temperature": [0.5]})
    neither, smoothing = (study.job(row_named("2", name), 0) for name in ("neither", "smoothing"))
    neither.keep_seconds(125.0)
    smoothing.keep_seconds(125.0)
    (smoothing.folder / "last.json").unlink()  # only begun
    monkeypatch.setattr(sys, "argv", list(map(str, words_of(study, "--list", "--table", "2", "--gpus", "-1")[1:])))
    tables.main()
    told = capfd.readouterr().out
    estimate = "{:.0f} min".format((1500 * 128 / 100 + 15 * 5924 / 1000) / 60)
    assert [line.split(None, 1)[1].strip() for line in told.splitlines() if line.startswith("    ")] == [
        "took 2 min",
        estimate,
        estimate,  # finished, by a program that kept no time
        estimate,
    ]


def test_measured_rates_survive_a_busy_machine(monkeypatch):
    """A step that is slow at first, and then whenever another program has the cores. By a clock of the test's own."""
    calls, sizes, clock = itertools.count(), set(), [0.0]

    def step(_, pictures, identities):
        call = next(calls)
        sizes.add((pictures.shape, len(identities)))
        clock[0] += 0.3 if call < 4 or call % 3 else 0.05

    def embed(inputs):
        clock[0] += 0.02

    monkeypatch.setattr(trainer.Trainer, "step", step)
    monkeypatch.setattr(rates.checkpoints, "inference", lambda net, device, size: embed)
    monkeypatch.setattr(rates, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    recipe = recipes.replace(recipes.RECIPES["demo"], backbone="mobilenet0.25", batch_size=12)
    measured = rates.measure(recipe, mx.cpu())
    assert sizes == {((12, 48, 48, 3), 12)}  # the recipe's own batch
    assert (measured.training, measured.inference) == pytest.approx((12 / 0.05, 12 / 0.02))
    assert clock[0] < 2 * rates.SECONDS + 1


def test_measuring_a_slow_network_takes_few_small_batches(monkeypatch):
    sizes = []
    monkeypatch.setattr(trainer.Trainer, "step", lambda _, pictures, identities: sizes.append(len(pictures)))
    monkeypatch.setattr(rates, "SECONDS", 0.0)
    recipe = recipes.replace(recipes.RECIPES["cub200"], backbone="mobilenet0.25")
    rates.measure(recipe, mx.cpu())
    assert sizes == [16] * rates.CALLS
    sizes.clear()
    rates.measure(recipes.replace(recipe, image_width=640, image_height=640, resize_size=720), mx.cpu())
    assert sizes == [4] * rates.CALLS  # two identities with two images each, however large they are


@pytest.mark.parametrize("given, measured", [(None, None), (4, 4), (32, 8), (128, None)])
def test_a_batch_in_pieces_is_measured_in_pieces(given, measured, monkeypatch):
    """Also where a part of the batch is measured, here 16 images of 128."""
    seen = []
    monkeypatch.setattr(trainer.Trainer, "step", lambda run, *_: seen.append(run.objective.micro_batch))
    monkeypatch.setattr(rates.checkpoints, "inference", lambda *_: lambda inputs: None)
    monkeypatch.setattr(rates, "SECONDS", 0.0)
    rates.measure(recipes.replace(recipes.RECIPES["cub200"], backbone="mobilenet0.25"), mx.cpu(), given)
    assert set(seen) == {measured}


def test_measured_rates_are_of_this_network(monkeypatch):
    """By this process's own seconds: another program may hold the cores at any time."""
    monkeypatch.setattr(rates, "SECONDS", 0.5)
    monkeypatch.setattr(rates, "time", types.SimpleNamespace(monotonic=time.process_time))
    small = recipes.replace(recipes.RECIPES["demo"], image_width=32, image_height=32, batch_size=12)
    large = recipes.changed(small, {"image_width": 128, "image_height": 128})
    slow, fast = rates.measure(large, mx.cpu()), rates.measure(small, mx.cpu())
    assert 0 < slow.training < slow.inference and slow.training < fast.training  # 16 times the work: not a close race


@pytest.mark.parametrize(
    "words, expected",
    [
        ([], "expected --list, --table NAME, --render or --plot"),
        (["--table", "5"], "--table 5: expected some of 1, 2, 3, 4, configurations"),
        (["--table", "crops", "--dataset", "sop", "--dry-run"], "compares crops with whole images; sop has no boxes"),
        (
            ["--table", "crops", "--dataset", "demo", "--dry-run", "--", "--uncropped"],
            "leave --cropped and --uncropped out",
        ),
        (
            ["--table", "1", "--dataset", "demo", "--name", "a/b", "--dry-run"],
            "--name a/b: expected the name of a folder",
        ),
        (
            ["--table", "1,4", "--rows", "both,b", "--dry-run"],
            "--rows 'b': expected some of ranking loss alone, classif",
        ),
        (
            ["--table", "all", "--rows", "cropped", "--dataset", "sop"],
            "--rows cropped: this data set has none of these",
        ),
        (["--render", "--rows", "S"], "--rows: for runs and --list"),
        (["--table", "1", "--gpus", "x"], "expected numbers, as in 0,1"),
        (["--table", "1", "--seeds", "0"], "expected a whole number from 1"),
        (["--table", "1", "--dry-run", "--", "--lr", "fast"], "--lr fast: not a number"),
        (["--table", "1", "--dry-run", "--weights", "nowhere"], "--weights nowhere: expected resnet50_v1.params there"),
        (["--table", "all", "--dry-run", "--", "--dim", "128"], "--table configurations, row SMG: dim 128: expected a"),
        (["--render", "--output-dir", "nowhere"], "nowhere: no finished runs"),
    ],
)
def test_bad_words_are_one_line(words, expected, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tables", *words])
    with pytest.raises(InputError) as error:
        tables.main()
    assert expected in str(error.value)


def test_weights_of_each_backbone(tmp_path, monkeypatch, capfd):
    for name in ("resnet50_v1", "se_resnet50", "bn_inception", "shufflenet_v2"):
        (tmp_path / (name + ".params")).touch()
    words = ["--table", "backbones", "--dataset", "cub200", "--dry-run", "--weights", tmp_path]
    monkeypatch.setattr(sys, "argv", list(map(str, ["tables", *words])))
    tables.main()
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 4
    for line in lines:
        options = arguments.parse(line.split()[2:])
        assert options.backbone_params == str(tmp_path / (train.recipe_of(options).backbone + ".params"))


def test_weights_by_a_runs_command():
    assert runs.weights_of(["train.py", "--from-scratch"]) == "random"
    assert runs.weights_of(["train.py", "--backbone-params", "a/b/c.params", "--gpu", "-1"]) == "c.params"
    assert runs.weights_of(["train.py", "--backbone-params=a/c.params"]) == "c.params"
    assert (
        runs.weights_of(["train.py", "--backbone-params", "a/b.params", "--backbone-params=a/c.params"]) == "c.params"
    )
    assert runs.weights_of(["train.py"]) == "the model zoo's"


def test_a_schedule_without_milestones_has_a_word():
    recipe = train.recipe_of(arguments.parse(["--dataset", "cub200", "--milestones", "none"]))
    assert recipe.milestones == () and recipes.from_record(asdict(recipe)) == recipe
    assert recipes.text_of_changes(recipes.RECIPES["cub200"], recipe) == {"milestones": "none"}
    for words in (["--mean", "none"], ["--lr", "none"], ["--milestones", "none,5"]):
        with pytest.raises(InputError, match=words[0]):
            train.recipe_of(arguments.parse(["--dataset", "cub200", *words]))


def test_the_published_values():
    """As docs/sources.md gives them, and the authors' evaluation code the last ones."""
    published = dict(batch_size=128, lr=1e-4, gamma=0.1, margin=0.1, temperature=0.5, smoothing=0.1, dim=1536)
    published.update(ranking_weight=1.0, classification_weight=1.0, image_width=224, image_height=224, resize_size=252)
    published.update(gem_p=3.0, learn_p=False, dense_bias=True, last_stride=1, freeze_batch_norm=False, squared=False)
    published.update(architecture="CGD", fusion="concat", backbone="resnet50_v1", soft_margin=False)
    schedules = {
        "cub200": ("MG", 1500, (400, 800)),
        "cars196": ("SG", 1500, (400, 800)),
        "sop": ("SG", 9300, (5580, 7440)),  # the schedules of these two were chosen by us
        "inshop": ("GS", 4040, (2424, 3232)),
    }
    for name, (config, iterations, milestones) in schedules.items():
        recipe = recipes.RECIPES[name]
        assert (recipe.config, recipe.iterations, recipe.milestones) == (config, iterations, milestones)
        assert {field: getattr(recipe, field) for field in published} == published
        assert (recipe.mean, recipe.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    released = dict(config="MG", dim=1536, image_width=224, image_height=224, cropped=True, dataset="cub200")
    released.update(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    assert {name: descriptions.RELEASED[name] for name in released} == released


@pytest.mark.parametrize("name", ["cub200", "cars196", "sop", "inshop", "demo"])
def test_a_recipes_docstring_begins_with_its_command(name):
    text = getattr(recipes, name).__doc__
    words = text.splitlines()[0].split()
    assert words[:2] == ["python", "train.py"]
    assert train.recipe_of(arguments.parse(words[2:])) == getattr(recipes, name)() == recipes.RECIPES[name]
    assert "hosen by us" in text
    assert set(datasets.SOURCES) == set(recipes.RECIPES)
