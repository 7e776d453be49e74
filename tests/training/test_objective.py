"""A batch in pieces: what it computes is what the whole batch does, but for batch norm."""

import numpy as np
import pytest
from test_losses import slow_triplet
from test_trainer import SIZE, make

from cgd.data import images
from cgd.network import model
from cgd.system.environment import mx
from cgd.training.objective import Objective
from conftest import one_batch

STEPS = (8, 7)  # images of each: in the second batch one could not be read


def batches_of(run):
    view = images.TrainingView(run.dataset.train, SIZE, SIZE)
    return [one_batch(view, run.sampler.batch(number)[:count]) for number, count in enumerate(STEPS)]


def trained(small_demo, folder, devices=1, micro_batch=None):
    """A run after two steps with batch norm frozen, what was logged, and the weights before and after."""
    devices = [mx.cpu(number) for number in range(devices)]
    run = make(small_demo, folder, devices, micro_batch=micro_batch, freeze_batch_norm=True, lr=0.1, milestones=())
    for variance in run.net.features.collect_params(".*running_var").values():
        variance.set_data(mx.nd.full(variance.shape, 0.02))  # or the small network's maps would fade
    run.net.classifier[0]._kwargs["use_global_stats"] = True
    # Adam divides by the gradient's size, which may be rounding error alone. With this epsilon its steps are smooth.
    run.optimiser.trainer._optimizer.epsilon = 1.0
    weights = [{name: p.data().asnumpy() for name, p in run.net.collect_params().items()}]
    values = [run.step(*batch, with_norm=True) for batch in batches_of(run)]
    weights.append({name: p.data().asnumpy() for name, p in run.net.collect_params().items()})
    return run, values, weights


@pytest.fixture(scope="module")
def whole(small_demo, tmp_path_factory):
    return trained(small_demo, tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("devices, micro_batch", [(1, 4), (2, 2)])
def test_a_batch_in_pieces_is_trained_on_as_a_whole(small_demo, tmp_path, whole, devices, micro_batch):
    """Weights, losses and the norm of the gradient, to rounding.

    A gradient is a sum over images and positions, up to 8 x 16 x 16 = 2^11 terms, in another order. With 2^-24 for the
    rounding of each, which add up like a random walk, it differs by 2^-24 x 2^5.5 = 3e-6 of the largest; later layers,
    earlier ones and the second step multiply that. A weight is rounded at each of two steps, by 2^-24 of itself.
    """
    one, values, (before, after) = whole
    run, own_values, (_, own) = trained(small_demo, tmp_path, devices, micro_batch)
    for expected, found in zip(values, own_values):
        assert found == pytest.approx(expected, rel=1e-4)
    for name, parameter in run.net.collect_params().items():
        moved = np.abs(after[name] - before[name]).max()
        np.testing.assert_allclose(own[name], after[name], rtol=5e-7, atol=1e-4 * moved, err_msg=name)
        usual = one.net.collect_params()[name].grad_req
        assert (usual, parameter.grad_req) in (("write", "add"), ("null", "null"))
        assert moved > 0 or usual == "null"
        for device in run.devices:
            np.testing.assert_array_equal(parameter.data(device).asnumpy(), own[name], err_msg=name)


def test_type_a_has_the_sum_of_its_branches_losses(small_demo, tmp_path):
    """Each branch's loss by a slow loop over its descriptors; the hardest distances are means over the branches."""
    options = dict(architecture="A", config="SMG", dim=24, backbone="resnet18_v1", margin=0.3)
    run = make(small_demo, tmp_path, **options)
    pictures, identities = batches_of(run)[0]
    with mx.autograd.record():
        _, branches, _ = run.net(images.normalise(pictures, run.recipe.mean, run.recipe.std))
    branches = [branch.asnumpy().astype("float64") for branch in branches]
    assert len(branches) == 3
    _, values = run.objective.backward(pictures, identities)
    costs = [slow_triplet(branch, identities, lambda p, n: max(0.0, 0.3 + p - n)) for branch in branches]
    assert values["ranking_loss"] == pytest.approx(sum(costs), rel=1e-4)
    for sign, place in (("positive", 0), ("negative", 1)):
        means = [np.mean([pair[place] for pair in hardest_pairs(branch, identities)]) for branch in branches]
        assert values["hardest_" + sign] == pytest.approx(np.mean(means), rel=1e-4)
    assert [abs(layer.weight.grad().asnumpy()).max() > 0 for layer in run.net.reductions] == [True] * 3


def hardest_pairs(embeddings, identities):
    """(distance of the hardest positive, of the hardest negative) of each anchor."""
    away = np.sqrt(((embeddings[:, None] - embeddings[None]) ** 2).sum(axis=2))
    same = identities[:, None] == identities[None]
    return [(row[equal].max(), row[~equal].min()) for row, equal in zip(away, same)]


def test_pieces_of_one_device_are_as_devices(small_demo, tmp_path, monkeypatch):
    """All gradients, with batch norm by the statistics of each piece. First nothing is recorded, then one at a time."""
    calls, forward = [], model.CGD.__call__
    spy = lambda net, x: calls.append((mx.autograd.is_recording(), len(x))) or forward(net, x)  # noqa: E731
    monkeypatch.setattr(model.CGD, "__call__", spy)
    runs = [make(small_demo, tmp_path, [mx.cpu(0), mx.cpu(1)]), make(small_demo, tmp_path, micro_batch=4)]
    devices, pieces = ([run.step(*batches_of(run)[0], with_norm=True), run.net.collect_params()] for run in runs)
    assert calls == [(True, 4), (True, 4), (False, 4), (False, 4), (True, 4), (True, 4)]
    assert pieces[0] == pytest.approx(devices[0], rel=1e-5)
    for name, parameter in pieces[1].items():
        if parameter.grad_req != "null":
            gradient = devices[1][name].grad(mx.cpu(0)).asnumpy()
            limit = 1e-5 * np.abs(gradient).max()
            np.testing.assert_allclose(parameter.grad().asnumpy(), gradient, atol=limit, err_msg=name)


@pytest.mark.parametrize("in_forward", [False, True])
def test_running_statistics_are_updated_once_for_each_piece(small_demo, tmp_path, monkeypatch, in_forward):
    """Those of the first batch norm, computed by hand: by MXNet's batch norm, and one that updates as cuDNN's does."""
    run = make(small_demo, tmp_path, micro_batch=3, lr=0.0)
    convolution, norm = run.net.features[0], run.net.features[1]
    mean, variance = np.zeros(norm.gamma.shape), np.ones(norm.gamma.shape)
    batches = batches_of(run)
    for pictures, _ in batches:
        maps = convolution(images.normalise(pictures, run.recipe.mean, run.recipe.std)).asnumpy()
        for first in range(3):
            piece = maps[first::3].astype("float64")
            mean = 0.9 * mean + 0.1 * piece.mean(axis=(0, 2, 3))
            variance = 0.9 * variance + 0.1 * piece.var(axis=(0, 2, 3))
    forward = model.CGD.__call__

    def updating(net, x):
        outputs = forward(net, x)
        if not mx.autograd.is_recording():
            norm.running_mean.data()[:] += 1
            norm.running_var.data()[:] += 1
        return outputs

    if in_forward:
        monkeypatch.setattr(model.CGD, "__call__", updating)
    for batch in batches:
        run.step(*batch)
    mx.nd.waitall()
    np.testing.assert_allclose(norm.running_mean.data().asnumpy(), mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(norm.running_var.data().asnumpy(), variance, rtol=1e-5)


@pytest.mark.parametrize("micro_batch", [None, 2, 3, 8, 31, 200])
@pytest.mark.parametrize("devices", [1, 2, 3])
@pytest.mark.parametrize("count", [3, 7, 127, 128])
def test_each_image_is_in_one_piece_and_pieces_are_as_few_as_possible(devices, micro_batch, count):
    run = Objective(mx.gluon.nn.Dense(1), None, [mx.cpu(number) for number in range(devices)], micro_batch)
    pieces = run.pieces(count)
    rows = [list(range(count)[part]) for _, part in pieces]
    assert sorted(sum(rows, [])) == list(range(count))
    sizes = [len(each) for each in rows]
    assert min(sizes) > 1 or count < 2 * devices
    assert max(sizes) - min(sizes) <= 1 and max(sizes) == run.largest_piece(count)
    assert [device for device, _ in pieces] == run.devices * (len(pieces) // devices)
    share = -(-count // devices)
    limit = micro_batch or share
    assert max(sizes) <= limit + (2 if count < 8 else 1) and (len(pieces) // devices - 1) * limit < share


def test_the_images_of_an_identity_are_in_different_pieces():
    for _, part in Objective(mx.gluon.nn.Dense(1), None, [mx.cpu()], 32).pieces(128):
        assert len({image // 4 for image in range(128)[part]}) == 32
