"""The training loop: it learns, keeps its schedule, logs what it says it logs, and stops when it should."""

import errno
import json
import os
import resource
import signal
import time
from collections import namedtuple
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest

from cgd.data import datasets, images
from cgd.data.loader import Unreadable
from cgd.network import backbones, checkpoints, model, onednn
from cgd.system import environment, errors
from cgd.system.environment import mx
from cgd.system.errors import InputError
from cgd.training import losses, recipes, state, trainer
from cgd.training.run import check_share
from conftest import one_batch

RECIPE = recipes.replace(
    recipes.RECIPES["demo"],
    backbone="mobilenet0.25",
    image_width=32,
    image_height=32,
    dim=16,
    batch_size=8,
    images_per_identity=2,
    iterations=4,
    milestones=(2, 3),
    eval_every=2,
)
SIZE = (32, 32)
# Batch norm's fresh running statistics make almost nothing of the small network's activations; this one stands them.
WITHOUT_TRAINING = "resnet18_v1"


def make(small_demo, folder, devices=None, store=None, micro_batch=None, **changes):
    devices = devices or [mx.cpu()]
    environment.seed_everything(0)
    dataset = datasets.load("demo", small_demo)
    recipe = recipes.replace(RECIPE, **changes)
    net = trainer.build(recipe, dataset, devices)
    return trainer.Trainer(net, dataset, recipe, folder, devices, store=store, micro_batch=micro_batch)


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_frozen_batch_norm_is_folded_and_trains_the_same(small_demo, tmp_path, monkeypatch):
    """Two steps of a network whose convolutions have biases."""
    options = dict(freeze_batch_norm=True, backbone="vgg11_bn", lr=0.1, milestones=())
    values, moves = [], []
    for fold in (True, False):
        if not fold:
            monkeypatch.setattr(onednn, "fold_frozen_batch_norm", lambda net: None)
        run = make(small_demo, tmp_path, **options)
        assert fold == bool(backbones.children(run.net.features, onednn.FrozenConvolution))
        run.optimiser.trainer._optimizer.epsilon = 1.0  # otherwise Adam divides by what may be rounding error alone
        view = images.TrainingView(run.dataset.train, SIZE, SIZE)
        parameters = run.net.collect_params().items()
        before = {name: p.data().asnumpy() for name, p in parameters}
        values.append([run.step(*one_batch(view, run.sampler.batch(number)), with_norm=True) for number in (0, 1)])
        moves.append({name: p.data().asnumpy() - before[name] for name, p in parameters})
    for folded, plain in zip(*values):
        assert folded == pytest.approx(plain, rel=1e-4)
    folded, plain = moves
    for name, move in plain.items():
        assert np.linalg.norm(folded[name] - move) <= 1e-2 * np.linalg.norm(move), name
    assert any(name.endswith("bias") and move.any() for name, move in plain.items())


def test_it_overfits_two_batches(small_demo, tmp_path):
    run = make(small_demo, tmp_path, milestones=(), lr=1e-3)
    view = images.TrainingView(run.dataset.train, SIZE, SIZE)
    batches = [one_batch(view, run.sampler.batch(number)) for number in (0, 1)]
    first = [run.step(*batch) for batch in batches]
    for _ in range(40):
        last = [run.step(*batch) for batch in batches]
    assert np.mean([values["ranking_loss"] for values in first]) > 0.05
    assert np.mean([values["ranking_loss"] for values in last]) < 0.01
    # with labels smoothed over 4 classes the loss cannot fall below the targets' entropy
    target = np.array([0.925, 0.025, 0.025, 0.025])
    floor = -(target * np.log(target)).sum()
    assert floor <= np.mean([values["classification_loss"] for values in last]) < floor + 0.1


def test_a_run_keeps_its_schedule_its_log_and_its_checkpoints(small_demo, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "LOG_EVERY", 1)
    run = make(small_demo, tmp_path)
    last, best, iteration = run.run()
    log = lines(tmp_path)
    steps = [line for line in log if "ranking_loss" in line]
    looks = [line for line in log if "recall" in line]
    assert [line["iteration"] for line in steps] == [1, 2, 3, 4]
    # the rate of each iteration: it falls once 2, and once 3 iterations are done
    np.testing.assert_allclose([line["lr"] for line in steps], [3e-3, 3e-3, 3e-4, 3e-5], rtol=1e-6)
    assert [line["iteration"] for line in looks] == [2, 4]
    assert list(looks[-1]["recall"].values()) == last
    assert best[0] == max(line["recall"]["1"] for line in looks)
    for line in steps:
        assert line["images_per_second"] > 0 and 0 <= line["data_time"] <= 1 and line["gradient_norm"] > 0
        assert (
            0 <= line["active_triplets"] <= 1 and 0 < line["hardest_negative"] < 2 and 0 < line["hardest_positive"] < 2
        )
    kept = checkpoints.Checkpoint(tmp_path / "best").description
    assert kept["iteration"] == iteration and kept["recall"]["1"] == best[0]
    kept = checkpoints.Checkpoint(tmp_path / "last").description
    assert kept["iteration"] == 4 and kept["recall"]["1"] == last[0]
    assert kept["cropped"] and kept["image_width"] == 32 and kept["dataset"] == "demo"


def test_no_iterations_is_an_evaluation_of_the_start(small_demo, tmp_path):
    last, best, iteration = make(small_demo, tmp_path, iterations=0).run()
    assert last == best and iteration == 0
    assert checkpoints.Checkpoint(tmp_path / "last").description["iteration"] == 0


def test_the_rate_of_the_released_schedule(small_demo, tmp_path):
    run = make(small_demo, tmp_path, lr=1e-4, milestones=(400, 800))
    rates = {}
    for run.iteration in (0, 399, 400, 799, 800, 1499):
        rates[run.iteration] = run.optimiser.learning_rate(run.iteration)
    expected = {0: 1e-4, 399: 1e-4, 400: 1e-5, 799: 1e-5, 800: 1e-6, 1499: 1e-6}
    assert rates == {iteration: pytest.approx(rate) for iteration, rate in expected.items()}


def test_a_loss_that_is_not_finite_stops_the_run(small_demo, tmp_path):
    run = make(small_demo, tmp_path)
    dense = run.net.classifier[1].weight
    dense.set_data(dense.data() * np.nan)
    with pytest.raises(InputError, match="iteration 1: .*nan.*--lr"):
        run.run()
    assert not (tmp_path / "last-0000.params").exists()


def test_a_weight_that_is_nan_is_noticed_although_the_losses_are_finite(small_demo, tmp_path):
    """oneDNN's ReLU of NaN is 0. And nothing is updated."""
    run = make(small_demo, tmp_path, backbone="mobilenetv2_0.25")
    weight = next(p for name, p in run.net.collect_params().items() if name.endswith("bottleneck9_conv0_weight"))
    spoiled = weight.data().asnumpy()
    spoiled.flat[0] = np.nan
    weight.set_data(mx.nd.array(spoiled))
    before = {name: p.data().asnumpy() for name, p in run.net.collect_params().items() if p.grad_req != "null"}
    with pytest.raises(trainer.NotFinite, match="iteration 1: the losses are finite, but a gradient is not"):
        run.run()
    for name, value in before.items():
        np.testing.assert_array_equal(run.net.collect_params()[name].data().asnumpy(), value, name)
    assert run.iteration == 0 and not run.updating and not (tmp_path / "state.npz").exists()


def test_nothing_is_updated_by_a_loss_that_is_not_finite(small_demo, tmp_path):
    """And the state that was saved before stays."""
    run = make(small_demo, tmp_path, iterations=9, eval_every=100)
    step, before = run.step, {}

    def spoiled(*batch, **more):
        if run.iteration == 3:
            before.update({name: p.data().asnumpy() for name, p in run.net.collect_params().items()})
            run.objective.recipe = recipes.replace(run.recipe, margin=float("nan"))
        return step(*batch, **more)

    run.step = spoiled
    with pytest.raises(InputError, match="iteration 4: the ranking loss is nan"):
        run.run(save_every=2)
    for name, parameter in run.net.collect_params().items():
        if parameter.grad_req != "null":
            np.testing.assert_array_equal(parameter.data().asnumpy(), before[name], name)
    assert run.iteration == 3
    assert state.read_state(tmp_path / "state.npz")[1]["iteration"] == 2


def test_a_state_that_is_not_finite_does_not_replace_a_good_one(small_demo, tmp_path):
    run = make(small_demo, tmp_path)
    run.run()
    before = (tmp_path / "state.npz").read_bytes()
    dense = run.net.reductions[0].weight
    dense.set_data(dense.data() * np.inf)
    with open(tmp_path / "log.jsonl", "a") as log, pytest.raises(InputError, match="dense0_weight is not finite"):
        run._save_state(log)
    assert (tmp_path / "state.npz").read_bytes() == before


def kept_iterations(run, monkeypatch, **more):
    """At which iterations the state is saved."""
    kept, save_state = [], run._save_state
    monkeypatch.setattr(run, "_save_state", lambda log: kept.append(run.iteration) or save_state(log))
    run.run(**more)
    return kept


def test_the_state_is_saved_by_the_clock_or_by_iterations(small_demo, tmp_path, monkeypatch):
    clock = [0.0]

    def now():
        clock[0] += 1e-3
        return clock[0]

    monkeypatch.setattr(trainer.time, "time", now)

    def slow(run, seconds=130):
        """Counts its steps and does nothing else, after the first."""
        step, values = run.step, {}

        def timed(*batch, **more):
            clock[0] += seconds
            if values:
                run.iteration += 1
            else:
                values.update(step(*batch, with_norm=True))
            return dict(values)

        run.step = timed
        return run

    def make_one():
        return slow(make(small_demo, tmp_path, iterations=20, eval_every=13))

    # each 10 minutes, counted from the save at the evaluation too
    assert kept_iterations(make_one(), monkeypatch) == [5, 10, 13, 18, 20]
    assert kept_iterations(make_one(), monkeypatch, save_every=0) == [13, 20]
    assert kept_iterations(make_one(), monkeypatch, save_every=6) == [6, 12, 13, 18, 20]


def with_recalls(run, results):
    """The run, whose evaluations have these results, at K = 10 and 1, whatever it trains."""
    run.dataset = run.dataset._replace(ranks=(10, 1))
    results = iter(results)
    evaluator = namedtuple("Fake", "extractor")(run.loaders.evaluator.extractor)

    class Fake(type(evaluator)):
        def __call__(self, *_, **__):
            return namedtuple("Result", "recalls")(next(results))

    run.loaders = run.loaders._replace(evaluator=Fake(evaluator.extractor))
    return run


def test_best_is_the_best_at_the_smallest_k(small_demo, tmp_path):
    """The first of those that are equal; and no worse one replaces it, of a resumed run neither."""
    run = with_recalls(make(small_demo, tmp_path), [[0.9, 0.5], [0.8, 0.6], [0.95, 0.6]])
    with open(tmp_path / "log.jsonl", "w") as log:
        for run.iteration in (2, 4, 6):
            run.evaluate(log)
        run._save_state(log)
    assert (run.recalls, run.best) == ([0.95, 0.6], ([0.8, 0.6], 4))
    resumed = with_recalls(make(small_demo, tmp_path, iterations=6), [[0.99, 0.55]])
    state.restore(resumed)
    resumed.evaluated = None  # and its last iteration is evaluated once more
    assert resumed.run() == ([0.99, 0.55], [0.8, 0.6], 4)
    kept = checkpoints.Checkpoint(tmp_path / "best").description
    assert (kept["iteration"], kept["recall"]) == (4, {"10": 0.8, "1": 0.6})


def test_an_evaluation_has_batches_of_its_own_and_shows_how_far_it_is(small_demo, tmp_path, capsys, monkeypatch):
    """The last batch is filled up, so that the network sees one size only; the fill is not in the result."""
    run = make(small_demo, tmp_path, backbone=WITHOUT_TRAINING)
    run.loaders = trainer.loaders(run.dataset, run.recipe, eval_batch_size=7)
    seen, embed = [], run.net.embed
    expected = run.loaders.evaluator(embed, mx.cpu(), quiet=True).queries.embeddings
    monkeypatch.setattr(checkpoints, "inference", lambda *_: lambda x: seen.append(x.shape) or embed(x))
    with open(tmp_path / "log.jsonl", "w") as log:
        run.evaluate(log)
    assert seen == [(7, 3, 32, 32)] * 4 and len(expected) == 24
    assert "/24 [" in capsys.readouterr().err
    view = run.loaders.evaluator.extractor.loader.view
    pictures = np.stack([view[number][0] for number in range(24)])
    one_by_one = [
        embed(images.normalise(mx.nd.array(p[None], dtype="uint8"), run.recipe.mean, run.recipe.std)) for p in pictures
    ]
    np.testing.assert_allclose(expected, np.concatenate([row.asnumpy() for row in one_by_one]), atol=1e-5)
    assert expected.std(axis=0).mean() > 1e-3  # they differ from one another


def test_memory_that_runs_out_is_told_with_what_to_try(small_demo, tmp_path, monkeypatch):
    run = make(small_demo, tmp_path)

    def fail(*_):
        with address_space(2**30):
            mx.nd.zeros((2**30,), dtype="float64").wait_to_read()

    monkeypatch.setattr(run.optimiser, "step", fail)
    with pytest.raises(InputError, match="out of memory; resume with --micro-batch 4$"):
        run.run()
    with monkeypatch.context() as patch:
        patch.setattr(run, "devices", [mx.gpu(0)])
        assert run._memory_advice() == "resume on several devices, --gpus N,N, or with --micro-batch 4"
    run.objective.micro_batch = 3  # 8 images in pieces of 3, 3 and 2, of which there is no half to try
    assert run._memory_advice().endswith("or start a new run with smaller images")
    monkeypatch.setattr(checkpoints, "inference", lambda *_: fail)
    with open(tmp_path / "log.jsonl", "w") as log, pytest.raises(InputError, match="memory; try --eval-batch-size 12"):
        run.evaluate(log)
    with pytest.raises(mx.base.MXNetError), environment.memory_for("advice"):
        mx.nd.ones((2, 3)).reshape((7, 7)).wait_to_read()  # another error stays what it is


def test_a_second_operator_without_memory_does_not_prevent_the_save(small_demo, tmp_path, monkeypatch):
    """MXNet keeps an error for each; what waits next, as the save does, raises the second one."""
    run = make(small_demo, tmp_path)

    def fail(*_, **options):
        with address_space(2**30):
            arrays = [mx.nd.zeros((2**30,), dtype="float64") for _ in range(2)]
            time.sleep(1)  # both have failed
            arrays[0].wait_to_read()

    monkeypatch.setattr(run, "step", fail)
    with pytest.raises(InputError, match="out of memory"):
        run.run()
    assert (tmp_path / "state.npz").exists() and (tmp_path / "last.json").exists()


def failed(shape):
    """An array whose operator fails when it is computed, as without memory."""
    return mx.nd.random.normal(0, -1, shape)


def test_what_a_failed_operator_has_not_written_is_not_saved(small_demo, tmp_path, monkeypatch):
    """Neither of a moment that the first update cannot allocate, nor of a copy that the resumption cannot."""
    run = make(small_demo, tmp_path)
    create = run.optimiser.trainer._optimizer.create_state

    def moments(index, weight):
        return failed(weight.shape), create(index, weight)[1]

    monkeypatch.setattr(run.optimiser.trainer._optimizer, "create_state", moments)
    with pytest.raises(mx.base.MXNetError):
        run.run()
    assert run.iteration == 0 and not (tmp_path / "state.npz").exists()

    make(small_demo, tmp_path, iterations=2).run()
    run = make(small_demo, tmp_path, iterations=4)
    updater = run.optimiser.restore

    def restore(arrays, steps):
        updater({name: failed(value.shape) for name, value in arrays.items()}, steps)

    run.optimiser.restore = restore
    with pytest.raises(mx.base.MXNetError):
        state.restore(run)


@contextmanager
def address_space(more):
    """This process may take so many bytes more, and no others."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + more, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def test_building_runs_nothing(small_demo, monkeypatch):
    """On a GPU a forward pass would tune each convolution for a batch of 1, and evaluations ask for other sizes."""

    def called(*_):
        raise AssertionError("a forward pass")

    monkeypatch.setattr(model.CGD, "__call__", called)
    devices = [mx.cpu(0), mx.cpu(1)]
    net = trainer.build(RECIPE, datasets.load("demo", small_demo), devices)
    for parameter in net.collect_params().values():
        assert 0 not in parameter.shape and parameter.list_ctx() == devices


def test_each_device_has_images_of_every_identity(small_demo, tmp_path):
    run = make(small_demo, tmp_path, [mx.cpu(0), mx.cpu(1)], batch_size=12, images_per_identity=3)
    identities = [run.dataset.train[index].identity for index, _ in run.sampler.batch(0)]
    shares = [identities[part] for _, part in run.objective.pieces(12)]
    assert [len(share) for share in shares] == [6, 6]
    assert all(len(set(share)) == 4 for share in shares)


def test_an_unreadable_picture_is_left_out_of_its_batch(small_demo, tmp_path, monkeypatch):
    run = make(small_demo, tmp_path, iterations=1, batch_size=24, images_per_identity=6)
    (tmp_path / "empty.jpg").touch()
    lost = run.dataset.train[7]
    run.dataset.train[7] = lost._replace(path=str(tmp_path / "empty.jpg"))
    run.loaders = trainer.loaders(run.dataset, run.recipe, unreadable=Unreadable(1))
    seen, step = [], run.step
    monkeypatch.setattr(run, "step", lambda *batch, **more: seen.append(batch) or step(*batch))
    run.run()
    ((pictures, identities),) = seen
    assert pictures.shape[0] == len(identities) == 23
    assert np.bincount(identities)[lost.identity] == 5
    assert pictures.asnumpy().reshape(23, -1).any(axis=1).all()  # none is the black one


@pytest.mark.parametrize("architecture", ["CGD", "A"])
def test_two_devices_are_as_one(small_demo, tmp_path, architecture):
    """Losses and all gradients, with batch norm frozen, which sees its own device's share of a batch only."""
    gradients, losses_seen = [], []
    for devices in ([mx.cpu(0)], [mx.cpu(0), mx.cpu(1)]):
        options = {"architecture": architecture, "backbone": WITHOUT_TRAINING, "freeze_batch_norm": True}
        run = make(small_demo, tmp_path, devices, **options)
        head = run.net.classifier[0]
        head._kwargs["use_global_stats"] = True
        view = images.TrainingView(run.dataset.train, SIZE, SIZE)
        pictures, identities = one_batch(view, run.sampler.batch(0)[:7])
        losses_seen.append(run.step(pictures, identities, with_norm=True))
        parameters = run.net.collect_params().values()
        for device in devices[1:]:
            for p in parameters:
                np.testing.assert_array_equal(p.data(device).asnumpy(), p.data(devices[0]).asnumpy())
        gradients.append({p.name: p.grad(devices[0]).asnumpy() for p in parameters if p.grad_req != "null"})
    assert losses_seen[0] == pytest.approx(losses_seen[1], rel=1e-4)
    assert sorted(gradients[0]) == sorted(gradients[1])
    for name, gradient in gradients[0].items():
        scale = np.abs(gradient).max()
        np.testing.assert_allclose(gradients[1][name], gradient, atol=1e-3 * scale + 1e-7, err_msg=name)


def first_gradient(small_demo, tmp_path, **changes):
    run = make(small_demo, tmp_path, **changes)
    view = images.TrainingView(run.dataset.train, SIZE, SIZE)
    pictures, identities = one_batch(view, run.sampler.batch(0))
    before = run.net.features[0].weight.data().asnumpy(), run.net.reductions[0].weight.data().asnumpy()
    run.step(pictures, identities)
    moved = [
        np.abs(block.weight.data().asnumpy() - old).max()
        for block, old in zip((run.net.features[0], run.net.reductions[0]), before)
    ]
    return run.net.features[0].weight.grad().asnumpy(), moved


def test_the_losses_have_their_weights(small_demo, tmp_path):
    both, ranking, classification = (
        first_gradient(small_demo, tmp_path, ranking_weight=r, classification_weight=c)[0]
        for r, c in ((3.0, 0.5), (1.0, 0.0), (0.0, 1.0))
    )
    scale = np.abs(both).max()
    assert np.abs(ranking).max() > 0 and np.abs(classification).max() > 0
    np.testing.assert_allclose(both, 3 * ranking + 0.5 * classification, atol=2e-3 * scale)


def test_the_backbone_has_a_rate_of_its_own(small_demo, tmp_path):
    """Adam's first step is as long as the rate."""
    _, (backbone, head) = first_gradient(small_demo, tmp_path, backbone_lr_mult=0.1, lr=1e-3, milestones=())
    assert backbone == pytest.approx(1e-4, rel=0.05) and head == pytest.approx(1e-3, rel=0.05)
    _, (backbone, _) = first_gradient(small_demo, tmp_path, backbone_lr_mult=0.0)
    assert backbone == 0


def test_ctrl_c_leaves_the_last_checkpoint(small_demo, tmp_path, monkeypatch):
    run = make(small_demo, tmp_path, eval_every=100)
    step = run.step

    def interrupted(*batch, **more):
        if run.iteration == 3:
            raise KeyboardInterrupt
        return step(*batch, **more)

    monkeypatch.setattr(run, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert checkpoints.Checkpoint(tmp_path / "last").description["iteration"] == 3


def test_the_same_seed_gives_the_same_losses_with_any_number_of_workers(small_demo, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "LOG_EVERY", 1)
    seen = []
    for workers in (0, 2):
        folder = tmp_path / str(workers)
        folder.mkdir()
        run = make(small_demo, folder)
        run.loaders = trainer.loaders(run.dataset, run.recipe, workers)
        run.run()
        seen.append([(line["ranking_loss"], line["classification_loss"]) for line in lines(folder) if "lr" in line])
    assert seen[0] == seen[1] and len(set(seen[0])) == 4


def test_both_losses_reach_the_backbone_and_weigh_the_same(small_demo, tmp_path):
    """The gradient of a step is the sum of the two losses' gradients."""
    run = make(small_demo, tmp_path)
    view = images.TrainingView(run.dataset.train, SIZE, SIZE)
    pictures, identities = one_batch(view, run.sampler.batch(0))
    weight = run.net.features[0].weight
    x, labels = images.normalise(pictures, run.recipe.mean, run.recipe.std), mx.nd.array(identities)
    gradients = []
    for which in (0, 1):
        with mx.autograd.record():
            embeddings, _, (logits,) = run.net(x)
            both = (
                losses.batch_hard_triplet(embeddings, labels)[0],
                losses.smoothed_softmax(logits, labels),
            )
        both[which].backward()
        gradients.append(weight.grad().asnumpy().copy())
    run.step(pictures, identities)
    assert all(np.abs(gradient).max() > 0 for gradient in gradients)
    np.testing.assert_allclose(weight.grad().asnumpy(), sum(gradients), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("freeze", [False, True])
def test_several_devices_go_on_alike(small_demo, tmp_path, freeze):
    """A resumed run has Adam's moments and its count of steps on each device."""
    devices = [mx.cpu(0), mx.cpu(1)]
    changes = dict(iterations=6, eval_every=3, freeze_batch_norm=freeze)
    whole = make(small_demo, tmp_path, devices, **changes)
    whole.run()
    (tmp_path / "stopped").mkdir()
    stopped = make(small_demo, tmp_path / "stopped", devices, **changes)
    with open(tmp_path / "stopped" / "log.jsonl", "w") as log:
        stopped.sampler.stop = 3
        stopped._train(log, stopped._progress(), 0)
        stopped._save_state(log)
    resumed = make(small_demo, tmp_path / "stopped", devices, **changes)
    state.restore(resumed)
    resumed.run()
    for name, parameter in resumed.net.collect_params().items():
        expected = whole.net.collect_params()[name]
        # Batch norm's running statistics are kept of the first device alone, which evaluates.
        for device in devices if "running" not in name else devices[:1]:
            np.testing.assert_array_equal(parameter.data(device).asnumpy(), expected.data(device).asnumpy(), name)


def test_a_stop_in_the_last_evaluation_leaves_no_earlier_recall(small_demo, tmp_path, monkeypatch):
    run = make(small_demo, tmp_path)
    usual = run.evaluate

    def evaluate(log):
        if run.iteration == run.recipe.iterations:
            raise KeyboardInterrupt
        usual(log)

    monkeypatch.setattr(run, "evaluate", evaluate)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    last, best = (checkpoints.Checkpoint(tmp_path / name).description for name in ("last", "best"))
    assert (last["iteration"], last["recall"]) == (4, None)
    assert best["iteration"] == 2 and set(best["recall"]) == {"1", "2", "4", "8"}


@pytest.mark.parametrize(
    "iterations, milestones, late",
    [(300, (299,), None), (300, (300, 800), "300,800"), (500, (400, 800), "800"), (0, (5,), None)],
)
def test_a_milestone_that_is_not_reached_gives_a_warning(iterations, milestones, late, capsys):
    """The rate falls after iteration m, so that m = the last one changes nothing; without training there is none."""
    recipes.warn_of_milestones(recipes.replace(RECIPE, iterations=iterations, milestones=milestones))
    told = capsys.readouterr().err
    assert told.startswith(f"warning: --milestones {late}: not reached in {iterations}") if late else not told


@pytest.mark.parametrize("again", [False, True], ids=["one", "another-while-it-waits-for-operators"])
def test_a_stop_during_an_evaluation_saves_and_says_how_to_go_on(again, small_demo, tmp_path, capsys, monkeypatch):
    run, waitall = make(small_demo, tmp_path), mx.nd.waitall

    def stopped(log):
        errors._asked.append(True)  # as the handler of a signal does
        if again:
            monkeypatch.setattr(mx.nd, "waitall", lambda: (signal.raise_signal(signal.SIGINT), waitall()))
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "evaluate", stopped)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert f"state saved at iteration 2; continue with train.py --resume {tmp_path}" in capsys.readouterr().err
    assert (tmp_path / "state.npz").exists() and (tmp_path / "last.json").exists()


def test_a_log_that_cannot_be_flushed_is_one_line(small_demo, tmp_path, monkeypatch):
    def fail(_):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    run = make(small_demo, tmp_path)
    monkeypatch.setattr(state.os, "fsync", fail)
    with open(str(tmp_path / "log.jsonl"), "a") as log:
        with pytest.raises(InputError, match="log.jsonl: cannot be written .Disk quota exceeded."):
            state.save(run, log)
    assert not (tmp_path / "state.npz").exists()


@pytest.mark.parametrize("devices, weight, fits", [(4, 1.0, True), (5, 1.0, False), (5, 0.0, True)])
def test_each_device_needs_two_images(devices, weight, fits):
    recipe = recipes.replace(RECIPE, classification_weight=weight)
    with nullcontext() if fits else pytest.raises(InputError, match="--batch-size 8: expected two images for each of"):
        check_share(recipe, devices)


@pytest.mark.parametrize(
    "changes, told",
    [
        (
            dict(learn_p=True, config="SM"),
            "--learn-p yes: --config SM has no GeM (G)",
        ),
        (dict(learn_p=True, config="SG"), ""),
        (
            dict(soft_margin=True, margin=0.2),
            "--margin: --soft-margin yes has none",
        ),
        (dict(soft_margin=True), ""),
    ],
)
def test_options_that_do_nothing_are_told(changes, told, capsys):
    recipes.warn_of_what_does_nothing(recipes.replace(RECIPE, **changes))
    expected = f"warning: {told}, so it does not change the training\n" if told else ""
    assert capsys.readouterr().err == expected


def test_the_best_checkpoint_on_the_disk_counts_not_that_of_the_state(small_demo, tmp_path, capsys):
    """A kill after an evaluation leaves a newer `best` than the state knows, one amid its writing none."""
    make(small_demo, tmp_path).run()
    known, best = state.read_state(tmp_path / "state.npz")[1]["best"], tmp_path / "best.json"

    def restored():
        run = make(small_demo, tmp_path)
        state.restore(run)
        return run.best

    assert restored() == tuple(known)
    newer = dict(json.loads(best.read_text()), iteration=3, recall={"1": 0.9, "2": 0.9, "4": 1.0, "8": 1.0})
    best.write_text(json.dumps(newer))
    assert restored() == ([0.9, 0.9, 1.0, 1.0], 3)
    best.unlink()
    capsys.readouterr()
    assert restored() is None
    assert f"best is missing; it had R@1 {known[0][0]:.4f} at iteration {known[1]}" in capsys.readouterr().err
    again = make(small_demo, tmp_path)
    state.restore(again)
    recalls = again.run()  # it was finished, and is evaluated once more
    assert recalls[1] == recalls[0] and best.exists()


@pytest.mark.parametrize("size", [8, 48])
def test_images_that_a_network_shrinks_to_nothing_are_one_line(small_demo, tmp_path, size):
    with pytest.raises(InputError, match=f"images of {size} x {size} pixels are too small for this network"):
        make(small_demo, tmp_path, backbone="alexnet", image_width=size, image_height=size)


def test_weights_that_changed_before_the_first_state_was_saved_are_refused(small_demo, tmp_path, here):
    net = make(small_demo, tmp_path / "a").net
    file = tmp_path / "net.params"
    net.features.save_parameters(str(file))
    words = ["--dataset", "demo", "--data-dir", small_demo, "--gpu", -1, "--num-workers", 0, "--iterations", 0]
    words += "--batch-size 8 --image-width 32 --image-height 32 --dim 24 --milestones 1 --config S".split()
    words += ["--backbone", RECIPE.backbone, "--backbone-params", file, "--output-dir", tmp_path / "run"]
    assert here("train.py", *words).returncode == 0
    (tmp_path / "run" / "state.npz").unlink()
    for parameter in net.features.collect_params().values():
        parameter.set_data(parameter.data() * 2)
    net.features.save_parameters(str(file))
    result = here("train.py", "--resume", tmp_path / "run")
    assert result.returncode == 2 and "was begun with other initial weights" in result.stderr


def test_a_learned_p_stays_in_its_bounds_and_is_logged(small_demo, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "LOG_EVERY", 1)
    run = make(small_demo, tmp_path, learn_p=True, config="MG", iterations=2)
    run.net.descriptors[1].p.set_data(mx.nd.array([6.1]))
    looked = []
    monkeypatch.setattr(run.diagnostics, "look", looked.append)
    run.run()
    logged = [line for line in lines(tmp_path) if "lr" in line]
    assert logged[0]["gem_p"] == 6.0 >= logged[1]["gem_p"] > 5.9
    assert looked == logged


def test_a_resumed_run_does_not_repeat_its_warnings(small_demo, tmp_path):
    run = make(small_demo, tmp_path, learn_p=True)
    run.run()
    line = dict(next(line for line in lines(tmp_path) if "lr" in line), gem_p=6.0)
    more = "".join(json.dumps(dict(line, iteration=n)) + "\n" for n in range(5, 9))
    with open(tmp_path / "log.jsonl", "a") as log:
        log.write(more)
        log.flush()
        state.save(run, log)
    told, again = [], make(small_demo, tmp_path, learn_p=True)
    again.diagnostics.tell = told.append
    state.restore(again)
    for n in range(9, 13):
        again.diagnostics.look(dict(line, iteration=n))
    assert told == []
    fresh = make(small_demo, tmp_path, learn_p=True)
    fresh.diagnostics.tell = told.append
    for n in range(9, 13):
        fresh.diagnostics.look(dict(line, iteration=n))
    assert len(told) == 1  # which a run that has not told it does


def test_a_batch_of_unreadable_images_is_told():
    with pytest.raises(InputError, match="none of the images of a batch could be read"):
        trainer.only(np.zeros(3, bool), mx.nd.zeros((3, 2, 2, 3)), np.arange(3))
