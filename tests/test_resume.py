"""Going on after any stop, on real processes: the end is the same, bit for bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from cgd import checkpoints, parameters
from cgd.errors import InputError
from conftest import ROOT, command, wait_until

RUN = "--from-scratch --batch-size 8 --images-per-identity 2 --image-width 32 --image-height 32 --dim 16 --gpu -1"
RUN += " --iterations 23 --eval-every 8 --save-every 3 --recallk 1 --learn-p yes --lr-steps 7 --seed 3"


def words(small_demo, folder):
    return ["train.py", "--dataset", "demo", "--data-dir", small_demo, "--output-dir", folder, *RUN.split()]


@pytest.fixture(scope="module")
def whole(small_demo, tmp_path_factory):
    """The folder of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    result = command(*words(small_demo, folder), "--num-workers", 1)
    assert result.returncode == 0, result.stderr
    return folder


def begin(*more):
    """A process of train.py, its output thrown away."""
    return subprocess.Popen(
        [sys.executable, *map(str, more)], cwd=str(ROOT), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def assert_the_same(folder, whole):
    """Parameters, moments, scores, log and checkpoints; the times in the log are its own."""
    arrays, facts = parameters.read_state(folder / "state.npz")
    expected_arrays, expected_facts = parameters.read_state(whole / "state.npz")
    assert sorted(arrays) == sorted(expected_arrays) and len(arrays) > 200
    for name, value in arrays.items():
        np.testing.assert_array_equal(value.asnumpy(), expected_arrays[name].asnumpy(), err_msg=name)
    facts.pop("log_length"), expected_facts.pop("log_length")
    assert facts == expected_facts and facts["iteration"] == 23
    assert log_of(folder) == log_of(whole)
    for name in ("last-0000.params", "last-symbol.json", "last.json", "best-0000.params", "best.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    assert not list(folder.glob(".part-*"))


def log_of(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in line if name not in ("images_per_second", "waiting")} for line in lines]


def test_a_run_killed_several_times_ends_like_one_that_was_not(small_demo, whole, tmp_path):
    """By kill -9, at moments that nobody chose: while it reads, trains, writes or evaluates."""
    moments, folder = random.Random(), tmp_path / "run"
    process = begin(*words(small_demo, folder), "--num-workers", 1)
    assert wait_until((folder / "arguments.json").exists, 200)
    for _ in range(4):
        wait_for_progress(process, folder / "log.jsonl")
        time.sleep(moments.random() * 0.8)
        process.kill()
        process.wait()
        (folder / ".part-1-last.json").touch()  # as a kill amid a write leaves it
        process = begin("train.py", "--resume", folder)
    assert process.wait(200) == 0
    assert_the_same(folder, whole)


def wait_for_progress(process, log):
    """Until the log is written to, or the process has come to its end."""
    before = log.stat().st_mtime_ns if log.exists() else 0
    wait_until(lambda: process.poll() is not None or (log.exists() and log.stat().st_mtime_ns != before), 200)


def test_a_run_that_was_asked_to_stop_goes_on(small_demo, whole, tmp_path):
    """By SIGTERM, as a scheduler asks; what Ctrl-C leaves is in test_commands.py."""
    folder = tmp_path / "run"
    process = begin(*words(small_demo, folder), "--num-workers", 0)
    assert wait_until(lambda: (folder / "log.jsonl").exists() and (folder / "log.jsonl").read_text(), 200)
    process.send_signal(signal.SIGTERM)
    assert process.wait(200) == 130
    stopped = checkpoints.Checkpoint(folder / "last").description["iteration"]
    assert parameters.read_state(folder / "state.npz")[1]["iteration"] == stopped < 23
    result = command("train.py", "--resume", folder, "--num-workers", 2)
    assert result.returncode == 0, result.stderr
    assert "from iteration {}".format(stopped) in result.stdout
    assert_the_same(folder, whole)


def test_a_finished_run_is_left_as_it_is(whole):
    before = {file.name: file.read_bytes() for file in whole.iterdir()}
    result = command("train.py", "--resume", whole)
    assert result.returncode == 0, result.stderr
    assert before == {file.name: file.read_bytes() for file in whole.iterdir()}


def test_bad_folders_and_broken_states_are_one_line(whole, tmp_path):
    result = command("train.py", "--resume", tmp_path / "nowhere")
    assert result.returncode == 2 and "nowhere: not the folder of a run" in result.stderr
    data = (whole / "state.npz").read_bytes()
    for broken in (b"", data[:1000], data[:-100], b"text"):
        (tmp_path / "state.npz").write_bytes(broken)
        with pytest.raises(InputError, match="state.npz: not the state of a run"):
            parameters.read_state(tmp_path / "state.npz")


def test_to_open_a_state_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    np.savez(str(tmp_path / "state.npz"), facts=np.array([Evil()], dtype=object))
    with pytest.raises(InputError, match="not the state of a run"):
        parameters.read_state(tmp_path / "state.npz")
    assert not (tmp_path / "ran").exists()
