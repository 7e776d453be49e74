"""How commands end: the exit code, what is printed, what is left behind."""

import fcntl
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cgd.network import checkpoints
from cgd.system import errors
from cgd.training import arguments, state, trainer
from conftest import LONG, ROOT, heed_stops, members_of, running, wait_until

PROGRAM = "import os, signal, sys, time\nfrom cgd.system import errors\ndef main():\n    {}\nerrors.run(main)\n"


def ended(body, **more):
    """A command whose `main` has this body."""
    words = [sys.executable, "-c", PROGRAM.format(body.replace("\n", "\n    "))]
    return subprocess.run(
        words, cwd=str(ROOT), stderr=subprocess.PIPE, text=True, timeout=60, preexec_fn=heed_stops, **more
    )


def test_names_of_files_that_are_not_text_can_be_printed(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "utf-8", "strict"))
    errors._prepare_streams()
    print(os.fsdecode(b"caf\xe9"), "\u00e9", flush=True)
    assert written.getvalue() == "caf\\udce9 \u00e9\n".encode()


@pytest.mark.parametrize(
    "body, code, told",
    [
        ("pass", 0, ""),
        ("raise errors.InputError('no\\nsuch file')", 2, "error: no such file\n"),
        ("open('/nowhere/x')", 2, "error: /nowhere/x: No such file or directory\n"),
        ("sys.exit(3)", 3, ""),
        ("sys.exit('a word')", 1, "a word\n"),
        ("raise KeyboardInterrupt", 130, "\ninterrupted\n"),
        ("os.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(9)", 130, "\ninterrupted\n"),
        ("os.kill(os.getpid(), signal.SIGHUP)\ntime.sleep(9)", 130, "\ninterrupted\n"),
        ("try: raise KeyboardInterrupt\nfinally: raise ValueError('on the way out')", 130, "\ninterrupted\n"),
    ],
)
def test_the_exit_code_and_what_is_printed(body, code, told):
    result = ended(body)
    assert (result.returncode, result.stderr) == (code, told)


@pytest.mark.parametrize(
    "body, last",
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise OSError(111, 'Connection refused')", "ConnectionRefusedError: [Errno 111] Connection refused"),
    ],
)
def test_an_error_that_nobody_expected_is_shown_whole(body, last):
    """Not as bad input: an OSError without a file's name says nothing of its cause."""
    result = ended(body)
    assert result.returncode == 1 and result.stderr.startswith("Traceback")
    assert result.stderr.splitlines()[-1] == last


def test_output_that_nobody_reads_ends_a_command_without_a_word():
    """As with `test.py | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    for body in ("print('x', flush=True)", "print('x')"):
        result = ended(body, stdout=writing)
        assert (result.returncode, result.stderr) == (141, "")
    os.close(writing)


def test_output_that_finds_no_room_is_a_failure():
    with open("/dev/full", "w") as full:
        assert ended("print('x')", stdout=full).returncode == 1


def test_a_thread_or_a_child_that_still_works_does_not_keep_a_command():
    start = time.time()
    body = "import threading, multiprocessing\nthreading.Thread(target=time.sleep, args=(50,)).start()\n"
    body += "child = multiprocessing.Process(target=time.sleep, args=(50,))\nchild.start()\nprint(child.pid)"
    result = ended(body, stdout=subprocess.PIPE)
    assert result.returncode == 0 and time.time() - start < 30
    assert wait_until(lambda: not running(int(result.stdout)))


RUN = "--from-scratch --image-width 32 --image-height 32 --dim 16 --batch-size 8 --images-per-identity 2 --gpu -1"
RUN += " --num-workers 2 --iterations 1000000 --eval-every 1000000 --save-every 0"
RUN += " --backbone mobilenet0.25"


def test_a_piped_run_keeps_its_state_when_it_is_stopped(small_demo, tmp_path, start):
    """`train.py 2>&1 | tee log` and Ctrl-C: tee is gone first, and each line that is printed raises BrokenPipeError.

    What comes first is chance: `make test-long` does it more often. Each time the run is resumed from what the stop
    has left.
    """
    folder = tmp_path / "run"
    words = ["train.py", "--dataset", "demo", "--data-dir", small_demo, "--output-dir", folder, *RUN.split()]
    before = 0
    for number in (signal.SIGINT, signal.SIGTERM) * (4 if LONG else 1):
        process, reading = piped(start, words)
        read_until(reading, before + 5)
        os.close(reading)
        os.killpg(process.pid, number)
        assert process.wait(60) in (130, 141)
        assert wait_until(lambda group=process.pid: not any(map(running, members_of(group))))
        facts = state.read_state(folder / "state.npz")[1]
        assert facts["iteration"] >= before + 5
        assert checkpoints.Checkpoint(folder / "last").description["iteration"] == facts["iteration"]
        log = (folder / "log.jsonl").read_text()
        assert len(log) == facts["log_length"]
        logged = [json.loads(line)["iteration"] for line in log.splitlines()]
        assert logged == list(range(10, facts["iteration"] + 1, 10))
        before, words = facts["iteration"], ["train.py", "--resume", folder]


def piped(start, words):
    """A process whose output goes into a pipe of 4 kB, and the end of the pipe to read from."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    process = start(*words, stdout=writing, stderr=writing)
    os.close(writing)
    return process, reading


def read_until(stream, iteration):
    """Reads a run's progress from a pipe until it has come so far."""
    seen, reached, end = b"", -1, time.time() + 120
    while reached < iteration and time.time() < end:
        seen = seen[-100:] + os.read(stream, 1000)
        reached = max(map(int, re.findall(rb"(\d+)/1000000 ", seen)), default=-1)
    assert reached >= iteration, seen


def test_a_stop_of_an_earlier_command_does_not_end_the_next_one(here):
    """Within these tests, where several commands run in one process."""
    errors._asked.append(True)
    assert here("train.py", "--what").returncode == errors.BAD_INPUT


def test_an_error_leaves_the_state_of_the_last_iteration(small_demo, tmp_path, monkeypatch, here):
    """Here a picture that cannot be read, after the pictures of some iterations could."""
    data, folder, step = tmp_path / "data", tmp_path / "run", trainer.Trainer.step
    shutil.copytree(str(small_demo), str(data))

    def step_without_pictures(run, *batch, **more):
        if run.iteration == 5:
            shutil.rmtree(str(data / "images"))
        return step(run, *batch, **more)

    monkeypatch.setattr(trainer.Trainer, "step", step_without_pictures)
    result = here("train.py", "--dataset", "demo", "--data-dir", data, "--output-dir", folder, *RUN.split())
    assert result.returncode == 2 and "error: {}".format(data / "images") in result.stderr
    assert "Traceback" not in result.stderr
    iteration = state.read_state(folder / "state.npz")[1]["iteration"]
    assert checkpoints.Checkpoint(folder / "last").description["iteration"] == iteration >= 6


def test_a_run_whose_reader_has_stalled_can_be_stopped(small_demo, tmp_path, start):
    """A pipe that is full and that nobody reads, as of a stopped `tee`."""
    folder = tmp_path / "run"
    words = ["train.py", "--dataset", "demo", "--data-dir", small_demo, "--output-dir", folder, *RUN.split()]
    process, reading = piped(start, words)
    log = folder / "log.jsonl"
    assert wait_until(lambda: log.exists() and log.read_text(), 120)
    assert wait_until(lambda: b"pipe_write" in Path(f"/proc/{process.pid}/wchan").read_bytes(), 60)
    for _ in range(60):  # while it trains, while the bar is closed, while it says that it was interrupted
        os.killpg(process.pid, signal.SIGTERM)
        if wait_until(lambda: process.poll() is not None, 1):
            break
    assert process.poll() in (-signal.SIGTERM, 130)
    iteration = state.read_state(folder / "state.npz")[1]["iteration"]
    assert checkpoints.Checkpoint(folder / "last").description["iteration"] == iteration >= 10
    assert wait_until(lambda: not any(map(running, members_of(process.pid))))
    os.close(reading)


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_closed_stream_changes_no_exit_code(closed):
    """As with `command >&-`, where Python has no such stream."""
    words = ["-c", PROGRAM.format("print('x')\n    print('y', file=sys.stderr)\n    raise errors.InputError('bad')")]
    shell = 'exec "$0" "$@" {}'.format(">&-" if closed == "stdout" else "2>&-")
    result = subprocess.run(["sh", "-c", shell, sys.executable, *words], cwd=str(ROOT), capture_output=True, text=True)
    expected = ("", "y\nerror: bad\n") if closed == "stdout" else ("x\n", "")
    assert (result.returncode, result.stdout, result.stderr) == (2, *expected)


@pytest.mark.parametrize("words", [["--resume", ""], ["--resume="], ["--dataset", "demo", "--pretrained-model", ""]])
def test_an_empty_value_is_not_the_same_as_none(words):
    """As of `--resume "$RUN"` with a variable that is not set, which would begin a new run."""
    with pytest.raises(errors.InputError, match="after --.*: expected a value, found an empty one"):
        arguments.parse(words)


def test_an_empty_value_is_told_where_flags_and_words_mix():
    """cgd.search and cgd.explain parse so. From Python 3.12 on argparse has another way through its methods for it."""
    parser = errors.Parser()
    parser.add_argument("word")
    parser.add_argument("--page")
    assert parser.parse_intermixed_args(["--page=a=", "b"]).page == "a="
    for words in (["b", "--page", ""], ["b", "--page="], ["", "--page", "a"]):
        with pytest.raises(errors.InputError, match="expected a value, found an empty one"):
            parser.parse_intermixed_args(words)
