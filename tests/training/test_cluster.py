"""Several machines, as processes on this one: a scheduler, a server and workers."""

import contextlib
import json
import multiprocessing
import os
import random
import signal
import socket
import time
from multiprocessing import forkserver
from types import SimpleNamespace

import numpy as np
import pytest
from cluster_worker import CHANGES, play, trained
from test_trainer import make

from cgd.system.environment import mx
from cgd.system.errors import InputError
from cgd.training import arguments, cluster, recipes, run
from cgd.training.optimiser import Optimiser
from conftest import ROOT, children_of, command, running, wait_until

RUN = "--from-scratch --batch-size 8 --images-per-identity 2 --image-width 32 --image-height 32 --dim 16 --gpu -1"
RUN += " --iterations 30 --eval-every 25 --save-every 3 --recallk 1 --num-workers 1 --dataset demo"
RUN += " --backbone mobilenet0.25"
WORKERS = 2

# Processes are forked from one that has imported MXNet: 18 imports would take most of the time of these tests.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["cluster_worker", "cgd.training.run"])


def free_port():
    """Below those that the system gives to connections, or one of them could take it before the scheduler does."""
    while True:
        port = random.SystemRandom().randrange(10000, 30000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                pass  # taken


def variables(workers=WORKERS):
    values = {"ROLE": "worker", "PS_ROOT_URI": "127.0.0.1", "PS_ROOT_PORT": free_port(), "NUM_SERVER": 1}
    values.update(NUM_WORKER=workers, NODE_HOST="127.0.0.1")
    known = {"DMLC_" + name: str(value) for name, value in values.items()}
    known.update(PS_HEARTBEAT_INTERVAL="1", PS_HEARTBEAT_TIMEOUT="5")
    return dict(known, OMP_NUM_THREADS=os.environ["OMP_NUM_THREADS"])  # with as many threads, rounding is the same


class Cluster:
    """The processes of a run: scheduler, server, workers. None is left behind at the end of the block."""

    def __init__(self, folder, *words, workers=WORKERS):
        self.folder, self.words, self.workers = folder, list(map(str, words)), workers

    def __enter__(self):
        roles, shared = ["scheduler", "server"] + ["worker"] * self.workers, variables(self.workers)
        self.files = [self.folder / "output{}.txt".format(number) for number in range(len(roles))]
        self.processes = [
            FORKS.Process(target=play, args=(role, shared, str(file), self.words))
            for role, file in zip(roles, self.files)
        ]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests/training"))))
            forkserver.ensure_running()
        for process in self.processes:
            process.start()
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.join()

    def outputs(self, seconds=200):
        """What each printed, once all have ended. If that takes longer, the test fails and says where they were."""
        end = time.time() + seconds
        for process in self.processes:
            process.join(max(0, end - time.time()))
        late = [process for process in self.processes if process.is_alive()]
        for process in late:
            os.kill(process.pid, signal.SIGABRT)
            process.join(10)
        texts = [file.read_text() for file in self.files]
        assert not late, "\n".join(["{} of them still ran after {} s:".format(len(late), seconds), *texts])
        return texts

    @property
    def codes(self):
        return [process.exitcode for process in self.processes]


def worker_run(kind, small_demo, folder, workers=WORKERS):
    """{name: array} of what each worker has trained."""
    with Cluster(folder, "train_few", kind, small_demo, folder, workers=workers) as run:
        texts = run.outputs()
        assert run.codes == [0] * (2 + workers), "\n".join(texts)
    return [dict(np.load(str(folder / "worker{}.npz".format(rank)))) for rank in range(workers)]


def assert_trained_alike(values, others):
    """Usually they are equal. But where a gradient is near zero, rounding decides the sign of Adam's whole step.

    So a few values may differ, by up to 0.0132: each moves by up to 0.0066, two steps of 0.003 and two of 0.0003. With
    the sum of gradients in the place of their mean, 62 % of the values differ by more than 1e-4.
    """
    assert sorted(values) == sorted(others)
    differences = np.concatenate([np.abs(values[name] - others[name]).ravel() for name in values])
    assert differences.max() < 0.014 and np.mean(differences > 1e-4) < 1e-3


class Averaging:
    """In the place of an optimiser: waits for the gradients of all workers' batches, then moves by their mean."""

    def __init__(self, run):
        self.optimiser, self.kept = run.optimiser, []
        self.gradients_are_finite = run.optimiser.gradients_are_finite
        self.parameters = [p for p in run.net.collect_params().values() if p.grad_req != "null"]

    def step(self, iteration, with_norm):
        self.kept.append([p.grad().asnumpy() for p in self.parameters])
        if len(self.kept) == WORKERS:
            for parameter, gradients in zip(self.parameters, zip(*self.kept)):
                parameter.grad()[:] = np.mean(gradients, axis=0)
            self.optimiser.step(iteration // WORKERS)
            self.kept = []
        return 0.0

    def learning_rate(self, iteration):
        return 0.0


def test_workers_are_as_one_process_with_the_averaged_gradients(small_demo, tmp_path):
    first, second = worker_run("dist_sync", small_demo, tmp_path)
    assert sorted(first) == sorted(second) and len(first) > 50
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    one = make(small_demo, tmp_path, **dict(CHANGES, iterations=WORKERS * CHANGES["iterations"]))
    one.optimiser = Averaging(one)
    one._train(open(os.devnull, "w"), one._progress(), 0)
    assert_trained_alike(first, trained(one))
    # the same, but for what each worker saw: it is no accident of a test that nothing could fail
    alone = make(small_demo, tmp_path, **CHANGES)
    alone._train(open(os.devnull, "w"), alone._progress(), 0)
    with pytest.raises(AssertionError):
        assert_trained_alike(first, trained(alone))


def test_one_worker_whose_server_updates_is_as_none(small_demo, tmp_path):
    """The server has the schedule, and the rate of the backbone."""
    (worker,) = worker_run("dist_async", small_demo, tmp_path, workers=1)
    alone = make(small_demo, tmp_path, **CHANGES)
    alone._train(open(os.devnull, "w"), alone._progress(), 0)
    assert_trained_alike(worker, trained(alone))


def test_gradients_are_sent_only_once_the_parameters_have_come(monkeypatch):
    """Sent at once, a parameter became the sum of gradients in 4 of 20 runs: too rare to test, so the order is."""
    events, waitall = [], mx.nd.waitall

    class Store(mx.kvstore.KVStoreBase):
        num_workers, type = 2, "dist_sync"
        is_capable = staticmethod(lambda capability: False)

        def broadcast(self, key, value, out, priority=0):
            events.append("parameter")

        def pushpull(self, key, value, out=None, priority=0):
            events.append("gradient")

    monkeypatch.setattr(mx.nd, "waitall", lambda: events.append("wait") or waitall())
    parameters = mx.gluon.ParameterDict()
    for name in "ab":
        parameters.get(name, shape=(1,)).initialize()
    optimiser = Optimiser(parameters, recipes.RECIPES["cub200"], Store())
    for iteration in range(2):
        with mx.autograd.record():
            total = sum(parameter.data() for parameter in parameters.values())
        total.backward()
        optimiser.step(iteration)
    assert events == ["parameter"] * 2 + ["wait"] + ["gradient"] * 4


@pytest.mark.parametrize("begun", [0, 3, 5, 9])
def test_the_servers_schedule_counts_the_steps_of_all_workers(begun):
    class Store:
        num_workers, type = 3, "dist_async"

    recipe = recipes.replace(recipes.RECIPES["cub200"], milestones=(5, 3, 8))
    parameters = mx.gluon.ParameterDict()
    parameters.get("weight", shape=(1,)).initialize()
    optimiser = Optimiser(parameters, recipe, Store())
    schedule = optimiser._servers_schedule(begun)
    for iteration in range(begun, 12):
        for worker in range(3):
            update = (iteration - begun) * 3 + worker + 1  # MXNet counts an update before it asks for its rate
            expected = optimiser.learning_rate(iteration)
            assert (schedule(update) if schedule else expected) == pytest.approx(expected)


def test_a_killed_worker_ends_the_run_and_resume_goes_on(small_demo, tmp_path):
    folder = tmp_path / "run"
    words = ["train.py", "--data-dir", small_demo, "--output-dir", folder, *RUN.split(), "--kvstore", "dist_sync"]
    with Cluster(tmp_path, *words) as run:
        dying = run.processes[3]
        began = wait_until(lambda: (folder / "state.npz").exists() or not all(p.is_alive() for p in run.processes), 200)
        assert began and dying.is_alive(), "\n".join(run.outputs(0))
        helpers = [child for process in run.processes for child in children_of(process.pid)]
        dying.kill()
        texts = run.outputs(60)
        lost = [number for number in (0, 1) if "worker {} of 2 has sent no heartbeat".format(number) in texts[0]]
        assert len(lost) == 1, texts[0]
        for process, text in zip(run.processes, texts):
            if process is not dying:
                assert process.exitcode == 1 and "the run ends here" in text and "--resume FOLDER" in text, text
                assert "Traceback" not in text
        assert len(helpers) >= 4 and wait_until(lambda: not any(map(running, helpers)), 20)

    with Cluster(tmp_path, "train.py", "--resume", folder) as run:
        texts = run.outputs()
        assert run.codes == [0] * 4, "\n".join(texts)
    leader = next(text for text in texts if "last: R@1" in text)
    assert "from iteration 0" not in leader and "(iteration 30" in leader
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in log if "lr" in line] == [10, 20, 30]
    assert [line["iteration"] for line in log if "recall" in line] == [25, 30]


def test_bad_input_ends_all(tmp_path):
    words = ["train.py", "--dataset", "folders", "--data-dir", tmp_path, "--gpu", "-1", "--kvstore", "dist_sync"]
    with Cluster(tmp_path, *words, workers=1) as run:
        texts = run.outputs(60)
        assert run.codes == [1, 1, 2], "\n".join(texts)
    assert all("error: " in text and "Traceback" not in text for text in texts)


def test_a_scheduler_and_a_server_do_not_wait_for_ever_for_a_worker(tmp_path):
    with Cluster(tmp_path, "serve_without_workers", workers=1) as run:
        texts = run.outputs(60)
        assert run.codes == [1, 1, 0], "\n".join(texts)
    assert all("not all processes of this run have connected" in text for text in texts[:2])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"DMLC_PS_ROOT_URI": ""}, "DMLC_PS_ROOT_URI is not set; expected the scheduler's address"),
        ({"DMLC_ROLE": ""}, "DMLC_ROLE is not set; expected one of scheduler, server, worker"),
        ({"DMLC_ROLE": "boss"}, "DMLC_ROLE is 'boss'; expected one of scheduler, server, worker"),
        ({"DMLC_PS_ROOT_PORT": "http"}, "DMLC_PS_ROOT_PORT is 'http'; expected a free port"),
        ({"DMLC_NUM_WORKER": "0"}, "DMLC_NUM_WORKER is '0'; expected the number of workers"),
        ({"PS_HEARTBEAT_TIMEOUT": "soon"}, "PS_HEARTBEAT_TIMEOUT is 'soon'; expected whole seconds"),
    ],
)
def test_variables_that_do_not_fit(monkeypatch, changes, message):
    values = dict(variables(), **changes)
    monkeypatch.setattr(cluster, "DMLC_ROLE", values.pop("DMLC_ROLE"))
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        cluster.check("dist_sync")


def test_a_kind_and_the_variables_belong_together(monkeypatch, here):
    monkeypatch.setattr(cluster, "DMLC_ROLE", "worker")
    with pytest.raises(InputError, match="DMLC_ROLE is worker: --kvstore dist_sync joins the others"):
        cluster.check(None)
    with pytest.raises(InputError, match="--kvstore: invalid choice: 'dist' .*dist_sync.*dist_async"):
        arguments.parse(["--kvstore", "dist"])
    monkeypatch.setattr(cluster, "DMLC_ROLE", None)
    cluster.check(None)
    result = here("train.py", "--dataset", "demo", "--kvstore", "dist_sync")
    assert result.returncode == 2 and "the variable DMLC_ROLE is not set" in result.stderr


def test_a_learned_p_is_refused_with_dist_async(monkeypatch):
    """Its servers do not keep p between 1 and 6."""
    monkeypatch.setattr(cluster, "check", lambda kind: None)
    monkeypatch.setattr(cluster, "DMLC_ROLE", "worker")
    joined = []
    monkeypatch.setattr(cluster, "membership", lambda kind: joined.append(kind) or contextlib.nullcontext("store"))
    monkeypatch.setattr(run, "train", lambda *arguments: None)
    learned, fixed = recipes.Recipe(learn_p=True), recipes.Recipe()
    with pytest.raises(InputError, match="--learn-p yes: not with --kvstore dist_async"):
        run.run(SimpleNamespace(kvstore="dist_async"), learned, None)
    assert not joined
    for kind, recipe in (("dist_sync", learned), ("dist_async", fixed)):
        run.run(SimpleNamespace(kvstore=kind), recipe, None)
    assert joined == ["dist_sync", "dist_async"]


@pytest.mark.parametrize("role, at", [("scheduler", "127.0.0.1:{}"), ("worker", "this machine's own address")])
def test_an_address_at_which_a_process_cannot_listen(role, at, small_demo):
    """The scheduler's port is taken; the worker's address is one for documentation (RFC 5737)."""
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.bind(("203.0.113.1", 0))
        pytest.skip("this machine can listen at any address")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        values = dict(variables(), DMLC_ROLE=role, DMLC_PS_ROOT_PORT=port, DMLC_NODE_HOST="203.0.113.1")
        result = command("train.py", "--dataset", "demo", "--data-dir", small_demo, "--kvstore", "dist_sync", **values)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert f"error: cannot listen at {at.format(port)}; expected" in result.stderr


def test_a_stop_ends_a_worker_that_waits_for_the_others_to_get_there():
    """Python's handlers, which train.py has, do not run while the library waits."""
    seen, own = [], lambda *_: None
    before = signal.signal(signal.SIGTERM, own)
    try:
        cluster.wait_for_all(SimpleNamespace(_barrier=lambda: seen.append(signal.getsignal(signal.SIGTERM))))
        assert seen == [signal.SIG_DFL] and signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_worker_that_waits_for_the_others_can_be_stopped(tmp_path, start, number):
    """The library waits in C, where Python's handlers do not run."""
    program = "from cgd.system import errors; errors._handle_stops()\n"
    program += "from cgd.training import cluster; cluster.join('dist_sync')"
    with open(str(tmp_path / "told"), "w") as told:
        process = start("-c", program, env=dict(os.environ, **variables()), stderr=told)
    assert wait_until(lambda: "waiting for 2 workers" in (tmp_path / "told").read_text(), 60)
    time.sleep(1)  # now it waits
    process.send_signal(number)
    assert wait_until(lambda: process.poll() is not None, 20)
    assert process.returncode == -number


def with_gradients(*gradients, devices=1):
    """Parameters of one value each, with these gradients, for each of the devices."""
    parameters = []
    for values in gradients:
        parameter = mx.gluon.Parameter(f"p{len(parameters)}", shape=(1,))
        parameter.initialize(ctx=[mx.cpu(number) for number in range(devices)])
        for gradient, value in zip(parameter.list_grad(), values):
            gradient[:] = value
        parameters.append(parameter)
    return parameters


def test_the_norm_is_of_all_parameters_and_of_the_workers_mean():
    """Gradients 3 and 4, which two workers have added up."""
    calls = SimpleNamespace(_params=with_gradients([3], [4]), set_learning_rate=float, update=lambda workers: None)
    calls.allreduce_grads = lambda: None
    optimiser = Optimiser.__new__(Optimiser)
    optimiser.recipe, optimiser.on_servers, optimiser.begun = recipes.RECIPES["cub200"], False, True
    optimiser.trainer = calls
    for workers, expected in ((1, 5), (2, 2.5)):
        optimiser.workers = workers
        assert optimiser.step(0, with_norm=True) == pytest.approx(expected)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e30])
def test_a_gradient_that_is_not_finite_is_noticed_on_any_device(wrong):
    sound = SimpleNamespace(_params=with_gradients([3, 3], [4, 4], devices=2))
    assert Optimiser.gradients_are_finite(SimpleNamespace(trainer=sound))
    for gradients in ([3, 3], [4, wrong]), ([wrong, 3], [4, 4]):
        broken = SimpleNamespace(_params=with_gradients(*gradients, devices=2))
        assert not Optimiser.gradients_are_finite(SimpleNamespace(trainer=broken))


@pytest.mark.parametrize("on_servers, expected", [(True, 7), (False, 3)])
def test_the_norm_is_of_all_devices_where_the_servers_add_them_up(on_servers, expected):
    """Gradients 3 and 4 on two devices; without servers they have been added up before, so that both are the sum."""
    trainer = SimpleNamespace(_params=with_gradients([3, 4], devices=2))
    assert Optimiser._norm(SimpleNamespace(trainer=trainer, on_servers=on_servers)) == expected
