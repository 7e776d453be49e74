"""Loader processes: the same batches as without them, and what happens when one or their parent dies."""

import errno
import faulthandler
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cgd.data import images
from cgd.data.datasets import Record
from cgd.data.loader import AHEAD, Loader, Unreadable
from cgd.system.errors import STOPS, InputError
from conftest import ROOT, command, running, wait_until


@pytest.fixture
def with_two_broken(records, tmp_path):
    """Three good pictures, then an empty and a cut one between good ones."""
    whole = Path(records[0].path).read_bytes()
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    broken = [Record(str(tmp_path / name), 1, None, 9) for name in ("empty.jpg", "cut.jpg")]
    return records[:3] + broken[:1] + records[3:4] + broken[1:] + records[4:]


def load(records, workers, unreadable=None):
    batches = Loader(images.EvalView(records, (16, 16)), 3, workers, unreadable).batches(images.eval_batches(7, 3))
    pictures, identities, readable = zip(*[(p.asnumpy(), labels, whole) for p, labels, whole in batches])
    return np.concatenate(pictures), np.concatenate(identities), np.concatenate(readable)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_picture_ends_the_run_with_its_name(with_two_broken, workers):
    with pytest.raises(InputError, match="empty.jpg: empty file; --skip-unreadable"):
        load(with_two_broken, workers)
    with pytest.raises(InputError, match="cut.jpg: .*truncated.*more than --skip-unreadable 1"):
        load(with_two_broken, workers, Unreadable(1))


@pytest.mark.parametrize("workers", [0, 2])
def test_so_many_unreadable_pictures_are_tolerated_and_told_once(with_two_broken, workers, capsys):
    unreadable = Unreadable(2)
    pictures, identities, readable = load(with_two_broken, workers, unreadable)
    assert readable.tolist() == [True, True, True, False, True, False, True]
    good = [record for record, whole in zip(with_two_broken, readable) if whole]
    alone = images.EvalView(good, (16, 16))
    np.testing.assert_array_equal(pictures[readable], np.stack([alone[index][0] for index in range(5)]))
    assert identities.tolist() == [record.identity for record in with_two_broken]
    load(with_two_broken, workers, unreadable)
    told = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[0] for line in told] == ["skipped (1 of 2)", "skipped (2 of 2)"]


class Numbers:
    """A view of keys that are numbers: pictures filled with them. A key of a list of numbers is done to the process."""

    size = (4, 3)

    def __getitem__(self, key):
        if isinstance(key, signal.Signals):
            faulthandler.disable()  # pytest's, which prints where the process was
            os.kill(os.getpid(), key)
        if key is None:
            raise ZeroDivisionError("a bug")
        return np.full((3, 4, 3), key, np.uint8), key, None


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_batches_come_in_order_and_each_once(workers):
    loader = Loader(Numbers(), 3, workers)
    keys = [[number, number + 1, number + 2][: 1 + number % 3] for number in range(40)]
    for _ in range(2):  # a loader serves any number of passes
        kept = list(loader.batches(keys))  # an array keeps its pictures after later batches were read
        assert [identities.tolist() for _, identities, _ in kept] == keys
        assert [pictures.asnumpy()[:, 0, 0, 0].tolist() for pictures, _, _ in kept] == keys
    loader.close()


def test_a_pass_that_was_given_up_leaves_nothing_to_the_next():
    loader = Loader(Numbers(), 1, 2)
    given_up = loader.batches([[1], [2], [3], [4], [5], [6]])
    next(given_up), next(given_up), next(given_up)
    found = [pictures.asnumpy()[0, 0, 0, 0] for pictures, _, _ in loader.batches([[n] for n in range(10, 19)])]
    assert found == list(range(10, 19))
    loader.close()


def test_batches_are_not_read_further_ahead_than_there_is_memory_for():
    taken = []
    batches = Loader(Numbers(), 1, 2).batches(taken.append(n) or [n] for n in range(100))
    next(batches)
    assert taken == list(range(AHEAD * 2))
    next(batches)
    assert taken == list(range(AHEAD * 2 + 1))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGBUS])
def test_a_process_that_dies_is_reported_with_what_helps(number):
    batches = Loader(Numbers(), 1, 2).batches([[1], [2], [3], [signal.Signals(number)], [5], [6], [7], [8]])
    with pytest.raises(InputError, match="by the signal {}.*--num-workers".format(signal.Signals(number).name)):
        list(batches)


def test_batches_that_no_memory_can_hold_are_one_line():
    with pytest.raises(InputError, match="a smaller --batch-size"):
        Loader(Numbers(), 10**18, 1)


def test_a_process_that_cannot_be_started_leaves_stops_as_they_were(monkeypatch):
    def start(process):
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", start)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with pytest.raises(InputError, match="Resource temporarily unavailable.*--num-workers"):
        Loader(Numbers(), 1, 1)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_a_bug_in_a_process_is_shown_with_its_traceback():
    batches = Loader(Numbers(), 1, 1).batches([[1], [None]])
    next(batches)
    with pytest.raises(RuntimeError, match="(?s)Traceback.*__getitem__.*ZeroDivisionError: a bug"):
        next(batches)


def test_ctrl_c_and_a_closed_terminal_are_left_to_the_parent():
    """Which saves what it has, and ends the processes itself."""
    loader = Loader(Numbers(), 1, 2)
    (first, second) = [worker.process for worker in loader.workers]
    batches = loader.batches([[n] for n in range(20)])
    next(batches)
    for number in set(STOPS) - {signal.SIGTERM}:
        os.kill(first.pid, number)
        os.kill(second.pid, number)
    assert len(list(batches)) == 19
    loader.close()
    assert (first.exitcode, second.exitcode) == (-signal.SIGKILL, -signal.SIGKILL)


def test_processes_do_not_outlive_a_killed_parent(records):
    """By kill -9, which leaves the parent no time to end them."""
    script = (
        "import os, sys, multiprocessing\n"
        "from cgd.data import images\n"
        "from cgd.data.datasets import Record\n"
        "from cgd.data.loader import Loader\n"
        "view = images.EvalView([Record(sys.argv[1], 0, None, 1)], (16, 16))\n"
        "batches = [Loader(view, 1, 2).batches([[0]] * 100) for _ in range(2)]\n"
        "[next(each) for each in batches for _ in range(2)]\n"
        "print(*[child.pid for child in multiprocessing.active_children()], flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    result = command("-c", script, records[0].path)
    children = [int(word) for word in result.stdout.split()]
    assert len(children) == 4
    assert wait_until(lambda: not any(running(child) for child in children))


def test_a_containers_small_shared_memory_is_enough(records):
    """Docker gives /dev/shm 64 MB; the batches here take 14 MB, with no more than 1 MB there."""
    isolated = ["unshare", "--mount", "sh", "-c"]
    mount = "mount -t tmpfs -o size=1m tmpfs /dev/shm && "
    if not shutil.which("unshare") or subprocess.call([*isolated, mount + "true"], stderr=subprocess.DEVNULL):
        pytest.skip("no right to mount a small /dev/shm here")
    script = (
        "import os, sys\n"
        "from cgd.data import images\n"
        "from cgd.data.datasets import Record\n"
        "from cgd.data.loader import Loader\n"
        "assert os.statvfs('/dev/shm').f_blocks * os.statvfs('/dev/shm').f_frsize == 2**20\n"
        "view = images.EvalView([Record(sys.argv[1], 0, None, 1)], (112, 112))\n"
        "print(sum(len(pictures) for pictures, _, _ in Loader(view, 96, 2).batches([[0] * 96] * 6)))\n"
    )
    words = [*isolated, mount + 'exec "$0" "$@"', sys.executable, "-c", script, records[0].path]
    result = subprocess.run(words, cwd=str(ROOT), capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout) == (0, "576\n"), result.stderr


@pytest.mark.parametrize("end", [lambda loader: loader.close(), lambda loader: None], ids=["closed", "collected"])
def test_processes_end_with_their_loader(end):
    loader = Loader(Numbers(), 1, 3)
    processes = [worker.process for worker in loader.workers]
    assert set(processes) <= set(multiprocessing.active_children())
    end(loader)
    del loader
    assert not any(process.is_alive() for process in processes)


def test_a_script_that_leaves_a_loader_open_ends():
    """Python's own way out waits for child processes."""
    script = "from cgd.data import images, loader\n"
    script += "kept = loader.Loader(images.EvalView([], (4, 4)), 1, 2)\nprint('done')\n"
    result = command("-c", script)
    assert (result.returncode, result.stdout) == (0, "done\n"), result.stderr
