"""A stopped run is resumed, on real processes: it ends with the same bits as one that was not stopped."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from cgd.data import datasets
from cgd.network import checkpoints, model
from cgd.system import files
from cgd.system.environment import mx
from cgd.system.errors import InputError
from cgd.training import objective, run, state
from cgd.training import record as run_record
from conftest import LONG, children_of, command, running, wait_until

RUN = "--from-scratch --batch-size 8 --images-per-identity 2 --image-width 32 --image-height 32 --dim 16 --gpu -1"
RUN += " --iterations 83 --eval-every 30 --save-every 3 --recallk 1 --learn-p yes --milestones 7 --seed 3"
RUN += " --backbone mobilenet0.25"
KILLS = 8 if LONG else 2


def words(small_demo, folder):
    return ["train.py", "--dataset", "demo", "--data-dir", small_demo, "--output-dir", folder, *RUN.split()]


@pytest.fixture(scope="module")
def whole(small_demo, tmp_path_factory):
    """The folder of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    result = command(*words(small_demo, folder), "--num-workers", 1)
    assert result.returncode == 0, result.stderr
    return folder


def assert_the_same(folder, whole):
    """Parameters, moments, scores, log and checkpoints; the times in the log are its own."""
    arrays, facts = state.read_state(folder / "state.npz")
    expected_arrays, expected_facts = state.read_state(whole / "state.npz")
    assert sorted(arrays) == sorted(expected_arrays) and len(arrays) > 200
    for name, value in arrays.items():
        np.testing.assert_array_equal(value.asnumpy(), expected_arrays[name].asnumpy(), err_msg=name)
    facts.pop("log_length"), expected_facts.pop("log_length")
    assert facts == expected_facts and facts["iteration"] == 83
    assert log_of(folder) == log_of(whole)
    for name in ("last-0000.params", "last-symbol.json", "last.json", "best-0000.params", "best.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    assert not list(folder.glob(".part-*"))


def log_of(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in line if name not in ("images_per_second", "data_time")} for line in lines]


def test_a_run_killed_several_times_ends_like_one_that_was_not(small_demo, whole, tmp_path, start):
    """By kill -9, at moments that nobody chose: while it reads, trains, writes or evaluates.

    The waits differ from run to run; RESUME_SEED, printed when the test fails, repeats them.
    """
    seed = int(os.environ.get("RESUME_SEED") or random.SystemRandom().randrange(10**6))
    print(f"RESUME_SEED={seed}")
    moments, folder, hit, saved_at = random.Random(seed), tmp_path / "run", 0, []
    process = start(*words(small_demo, folder), "--num-workers", 1)
    assert wait_until((folder / "arguments.json").exists, 200)
    for _ in range(KILLS):
        wait_for_progress(process, folder / "log.jsonl", trained=not hit or moments.random() < 0.5)
        pause = moments.random() * 0.6
        time.sleep(pause)
        running = process.poll() is None
        hit += running
        process.kill()
        process.wait()
        saved = (folder / "state.npz").exists()
        iteration = state.read_state(folder / "state.npz")[1]["iteration"] if saved else 0
        saved_at.append(iteration)
        print(f"killed after {pause:.3f} s, {'running' if running else 'ended'}, state of iteration {iteration}")
        (folder / ".part-1-last.json").touch()  # as a kill amid a write leaves it
        process = start("train.py", "--resume", folder)
    assert process.wait(200) == 0 and hit and max(saved_at) > 0
    assert_the_same(folder, whole)


def wait_for_progress(process, log, trained):
    """Until the log is opened, or if `trained` has one more line, or the process has ended."""

    def facts():
        return (log.stat().st_size if trained else log.stat().st_mtime_ns) if log.exists() else 0

    before = facts()
    wait_until(lambda: process.poll() is not None or facts() > before, 200)


def test_a_run_that_still_trains_is_not_resumed(small_demo, tmp_path, start):
    folder = tmp_path / "run"
    process = start(*words(small_demo, folder), "--num-workers", 0)
    assert wait_until((folder / "log.jsonl").exists, 200)
    process.send_signal(signal.SIGSTOP)
    told = command("train.py", "--resume", folder, "--num-workers", 0)
    assert told.returncode == 2 and "another process trains in this folder" in told.stderr
    process.kill()
    process.wait()
    with run.occupied(folder):  # the lock has ended with the process
        pass


def test_a_run_that_ended_while_this_one_loaded_is_not_overwritten(small_demo, tmp_path, here, monkeypatch):
    occupied = run.occupied

    def late(folder):
        folder.mkdir(parents=True)
        (folder / "log.jsonl").write_text("of the other\n")
        return occupied(folder)

    monkeypatch.setattr(run, "occupied", late)
    told = here(*words(small_demo, tmp_path / "run"))
    assert told.returncode == 2 and "holds a run; choose another folder" in told.stderr
    assert (tmp_path / "run" / "log.jsonl").read_text() == "of the other\n"
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == ["lock", "log.jsonl"]


def test_two_runs_never_choose_the_same_folder(tmp_path):
    (tmp_path / "cub200-MG-1").mkdir()
    folders = [files.new_folder(tmp_path, "cub200-MG") for _ in range(3)]
    assert [folder.name for folder in folders] == ["cub200-MG-2", "cub200-MG-3", "cub200-MG-4"]
    with run.occupied(folders[0]), pytest.raises(InputError, match="another process trains in this folder"):
        run.occupied(folders[0]).__enter__()
    with run.occupied(folders[0]):
        pass


def test_a_run_that_was_asked_to_stop_goes_on(small_demo, whole, tmp_path, here, start):
    """By SIGTERM, as a scheduler asks; what Ctrl-C leaves is in test_commands.py."""
    folder = tmp_path / "run"
    process = start(*words(small_demo, folder), "--num-workers", 2)
    assert wait_until(lambda: (folder / "log.jsonl").exists() and (folder / "log.jsonl").read_text(), 200)
    loaders = children_of(process.pid)
    process.send_signal(signal.SIGTERM)
    assert process.wait(200) == 130
    assert len(loaders) == 4 and wait_until(lambda: not any(map(running, loaders)))
    stopped = checkpoints.Checkpoint(folder / "last").description["iteration"]
    assert state.read_state(folder / "state.npz")[1]["iteration"] == stopped < 83
    result = here("train.py", "--resume", folder, "--num-workers", 0)
    assert result.returncode == 0, result.stderr
    assert "from iteration {}".format(stopped) in result.stdout
    assert_the_same(folder, whole)


def test_a_finished_run_is_left_as_it_is(whole, here):
    before = {file.name: file.read_bytes() for file in whole.iterdir()}
    result = here("train.py", "--resume", whole)
    assert result.returncode == 0, result.stderr
    assert before == {file.name: file.read_bytes() for file in whole.iterdir()}


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of that run, for tests that change it."""
    return shutil.copytree(str(whole), str(tmp_path / "copy"))


@pytest.mark.parametrize(
    "more, told",
    [
        (["--lr", "0.1"], "in this run --lr is"),
        (["--margin", "0.2", "--dim", "8"], "in this run --dim is 16, --margin is 0.1; another value needs a new run"),
        (["--iterations", "82"], "in this run --iterations is"),
        (["--seed", "4"], "in this run --seed is"),
        (["--uncropped"], "the run had other images, classes or boxes"),
        (["--recallk", "1,2"], "the run had other --recallk: [1], now [1, 2]"),
        (["--output-dir", "elsewhere"], "--resume and --output-dir exclude each other"),
        (["--dataset", "folders"], "in this run --dataset is"),
        (["--pretrained-model", "somewhere"], "with the run's own flags, argument --pretrained-model: not allowed"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_resumed_run_is_the_same_run(copy, here, more, told):
    before = {file.name: file.read_bytes() for file in Path(copy).iterdir()}
    result = here("train.py", "--resume", copy, *more)
    assert result.returncode == 2 and told in result.stderr
    assert before == {file.name: file.read_bytes() for file in Path(copy).iterdir()}


def test_data_that_changed_is_another_run(copy, here, many_birds):
    result = here("train.py", "--resume", copy, "--data-dir", many_birds)
    assert result.returncode == 2 and "'Train': [4, 24]" in result.stderr and "'Train': [8, 32]" in result.stderr


def test_more_iterations_are_recorded(copy, here):
    for iterations in (85, 86):
        result = here("train.py", "--resume", copy, "--iterations", iterations)
        assert result.returncode == 0, result.stderr
        record = json.loads(Path(copy, "arguments.json").read_text())
        assert record["recipe"]["iterations"] == iterations
        assert checkpoints.Checkpoint(Path(copy, "last")).description["iteration"] == iterations
    result = here("train.py", "--resume", copy)
    assert "from iteration 86" in result.stdout and "(iteration 86, " in result.stdout


def test_a_resumed_run_needs_no_weights_and_takes_the_newer_device(small_demo, tmp_path, here, monkeypatch):
    """The state has all weights. Devices and workers are where a run is done, not what it is."""
    counts, pieces = [], objective.Objective.pieces
    monkeypatch.setattr(objective.Objective, "pieces", lambda *_: counts.append(len(pieces(*_))) or pieces(*_))
    weights = tmp_path / "weights.params"
    net = model.CGD(backbone="mobilenet0.25")
    net.initialize()
    net(mx.nd.zeros((1, 3, 32, 32)))
    net.features.save_parameters(str(weights))
    run = [word for word in words(small_demo, tmp_path / "run") if word != "--from-scratch"]
    run += ["--iterations", 2, "--backbone-params", weights, "--micro-batch", 4]
    assert here(*run).returncode == 0 and set(counts) == {2}  # pieces of a batch of 8
    counts.clear()
    weights.unlink()
    file = tmp_path / "run" / "arguments.json"
    record = json.loads(file.read_text())
    record["command"] += ["--gpus", "2,3", "--num-workers", "5"]  # as if it had been begun on another machine
    file.write_text(json.dumps(record))
    again = ["train.py", "--resume", tmp_path / "run", "--iterations", 3]
    result = here(*again)
    assert result.returncode == 2 and "--gpu 2" in result.stderr
    result = here(*again, "--gpu", -1, "--num-workers", 0, "--micro-batch", 3)
    assert result.returncode == 0 and set(counts) == {3}, result.stderr
    assert "from iteration 2" in result.stdout and "(iteration 3, " in result.stdout


def test_a_checkpoint_to_start_from_may_have_moved(copy, tmp_path, monkeypatch):
    file = Path(copy, "arguments.json")
    record = json.loads(file.read_text())
    command = [word for word in record["command"] if word != "--from-scratch"]
    file.write_text(json.dumps(dict(record, command=[*command, "--pretrained-model", "old/cub"])))
    assert run_record.resume(["--resume", str(copy), "--pretrained-model", "new/cub"])
    with pytest.raises(InputError, match="in this run --pretrained-model is old/cub"):
        run_record.resume(["--resume", str(copy), "--pretrained-model", "new/cars"])
    monkeypatch.chdir(tmp_path)
    Path("old").mkdir()
    Path("old/cub-0000.params").touch()  # it has not moved: the other one is another run's
    with pytest.raises(InputError, match="in this run --pretrained-model is old/cub"):
        run_record.resume(["--resume", str(copy), "--pretrained-model", "new/cub"])


def test_a_run_of_an_older_version_is_refused_with_what_to_do(copy, here):
    record = json.loads(Path(copy, "arguments.json").read_text())
    record["recipe"]["lr_steps"] = record["recipe"].pop("milestones")
    Path(copy, "arguments.json").write_text(json.dumps(record))
    result = here("train.py", "--resume", copy)
    assert result.returncode == 2 and "--pretrained-model {}/last".format(copy) in result.stderr


def test_bad_folders_and_broken_states_are_one_line(whole, tmp_path, here):
    result = here("train.py", "--resume", tmp_path / "nowhere")
    assert result.returncode == 2 and "nowhere: not the folder of a run" in result.stderr
    data = (whole / "state.npz").read_bytes()
    for broken in (b"", data[:1000], data[:-100], b"text"):
        (tmp_path / "state.npz").write_bytes(broken)
        with pytest.raises(InputError, match="state.npz: not the state of a run"):
            state.read_state(tmp_path / "state.npz")


def test_to_open_a_state_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    np.savez(str(tmp_path / "state.npz"), facts=np.array([Evil()], dtype=object))
    with pytest.raises(InputError, match="not the state of a run"):
        state.read_state(tmp_path / "state.npz")
    assert not (tmp_path / "ran").exists()


def test_the_images_of_a_resumed_run_are_the_same(small_demo):
    """Not only as many: other splits, classes or boxes are other data; another place of the folder is not."""
    dataset = datasets.load("demo", small_demo)
    digests = datasets.digests(dataset)
    swapped = dataset._replace(train=dataset.test, test=dataset.train)
    assert datasets.digests(swapped) == {"train": digests["test"], "test": digests["train"]} != digests
    assert datasets.digests(datasets.without_boxes(dataset)) != digests
    first = dataset.train[0]
    others = [
        [record._replace(identity=record.identity ^ 1) for record in dataset.train],
        [first._replace(image_id=first.image_id + 1000), *dataset.train[1:]],
        [first._replace(box=(0, 0, 1, 1)), *dataset.train[1:]],
        [first._replace(path=first.path + ".png"), *dataset.train[1:]],
        dataset.train[::-1],
        dataset.train[1:],
    ]
    found = {datasets.digests(dataset._replace(train=train))["train"] for train in others}
    assert len(found) == len(others) and digests["train"] not in found
    moved = [record._replace(path=record.path.replace(str(small_demo), "/elsewhere")) for record in dataset.train]
    assert datasets.digests(dataset._replace(train=moved)) == digests


@pytest.mark.parametrize("key", run_record.COMPARED)
def test_what_a_resumed_run_must_have_in_common(key):
    now = {"data": {"Train": (2, 8)}, "data_sha1": {}, "ranks": (1, 2), "tf32_allowed": False, "kvstore": None}
    now["workers"] = 1
    own = json.loads(json.dumps(now))
    run_record.check(own, now)
    with pytest.raises(InputError, match=r"--resume: the run had other .*another"):
        run_record.check(dict(own, **{key: "another"}), now)


def test_the_number_of_workers_is_compared():
    assert {"kvstore", "workers", "tf32_allowed"} < set(run_record.COMPARED)


def test_a_run_whose_state_is_gone_is_not_begun_anew(copy, here):
    """Its log and its checkpoints would be written over."""
    Path(copy, "state.npz").unlink()
    before = {file.name: file.read_bytes() for file in Path(copy).iterdir()}
    result = here("train.py", "--resume", copy, "--iterations", 90)
    assert result.returncode == 2 and "state.npz: is gone, so this run cannot be resumed; train its" in result.stderr
    after = {file.name: file.read_bytes() for file in Path(copy).iterdir()}
    assert {name for name in after if after[name] != before.get(name)} <= {"arguments.json", "lock"}
    Path(copy, "last.json").unlink()  # as if it had been killed just after its first evaluation
    log = Path(copy, "log.jsonl").read_text().splitlines(True)
    Path(copy, "log.jsonl").write_text("".join(log[: 1 + next(n for n, line in enumerate(log) if "recall" in line)]))
    result = here("train.py", "--resume", copy)
    assert result.returncode == 0 and "from iteration 0" in result.stdout, result.stderr


def test_a_run_that_was_killed_before_it_wrote_a_line_begins_anew(copy, here):
    for file in Path(copy).iterdir():
        if file.name != "arguments.json":
            file.unlink()
    result = here("train.py", "--resume", copy)
    assert result.returncode == 0 and "from iteration 0" in result.stdout, result.stderr


def test_initial_weights_cannot_be_exchanged_before_the_first_save(copy, here):
    Path(copy, "state.npz").unlink()
    result = here("train.py", "--resume", copy, "--backbone-params", "x.params")
    assert result.returncode == 2 and "not allowed with" in result.stderr
    record = json.loads(Path(copy, "arguments.json").read_text())
    record["command"] = [word for word in record["command"] if word != "--from-scratch"]
    Path(copy, "arguments.json").write_text(json.dumps(record))
    result = here("train.py", "--resume", copy, "--backbone-params", "x.params")
    assert result.returncode == 2 and "in this run --backbone-params is" in result.stderr
