"""The losses against slow float64 loops written from their definitions."""

import numpy as np
import pytest

from cgd.system.environment import mx
from cgd.training import losses


def slow_triplet(embeddings, identities, cost):
    """The definition, anchor by anchor."""
    total = 0.0
    for i, anchor in enumerate(embeddings):
        away = [np.sqrt(((anchor - other) ** 2).sum()) for other in embeddings]
        positives = [away[j] for j in range(len(away)) if j != i and identities[j] == identities[i]]
        negatives = [away[j] for j in range(len(away)) if identities[j] != identities[i]]
        if positives and negatives:
            total += cost(max(positives), min(negatives))
    return total / len(embeddings)


def slow_gradient(embeddings, identities, cost, step=1e-6):
    gradient = np.zeros_like(embeddings)
    for place in np.ndindex(*embeddings.shape):
        for sign in (1, -1):
            moved = embeddings.copy()
            moved[place] += sign * step
            gradient[place] += sign * slow_triplet(moved, identities, cost) / (2 * step)
    return gradient


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def triplet_and_gradient(embeddings, identities, margin, **more):
    x = mx.nd.array(embeddings)
    x.attach_grad()
    with mx.autograd.record():
        loss, _ = losses.batch_hard_triplet(x, mx.nd.array(identities), margin, **more)
    loss.backward()
    return loss.asscalar(), x.grad.asnumpy()


COSTS = {
    "margin 0.1": (dict(margin=0.1), lambda p, n: max(0.0, 0.1 + p - n)),
    "margin 0.5": (dict(margin=0.5), lambda p, n: max(0.0, 0.5 + p - n)),
    "soft": (dict(margin=0.1, soft=True), lambda p, n: np.log1p(np.exp(p - n))),
    "squared": (dict(margin=0.1, squared=True), lambda p, n: max(0.0, 0.1 + p**2 - n**2)),
    "soft and squared": (dict(margin=0.1, soft=True, squared=True), lambda p, n: np.log1p(np.exp(p**2 - n**2))),
}


@pytest.mark.parametrize("kind", COSTS)
@pytest.mark.parametrize("seed", range(3))
def test_triplet_loss_and_gradient_equal_a_slow_reference(seed, kind):
    random = np.random.RandomState(seed)
    options, cost = COSTS[kind]
    embeddings = unit(random.randn(12, 5))
    identities = random.randint(5, size=12)
    identities[0] = 9  # alone in the batch: an anchor without a positive
    loss, gradient = triplet_and_gradient(embeddings, identities, **options)
    assert loss == pytest.approx(slow_triplet(embeddings, identities, cost), abs=1e-6)
    np.testing.assert_allclose(gradient, slow_gradient(embeddings, identities, cost), atol=1e-4)


def test_what_is_told_of_the_hardest_triplets():
    """On a line, by hand: positives 1, 1, 4, 4 away, negatives 2, 1, 1, 5 away."""
    embeddings, identities = mx.nd.array([[0], [1], [2], [6]]), mx.nd.array([0, 0, 1, 1])
    _, facts = losses.batch_hard_triplet(embeddings, identities, margin=0.5)
    assert facts.hardest_positive.asscalar() == pytest.approx((1 + 1 + 4 + 4) / 4)
    assert facts.hardest_negative.asscalar() == pytest.approx((2 + 1 + 1 + 5) / 4)
    assert facts.active_triplets.asscalar() == pytest.approx(2 / 4)  # the second, by its margin, and the third
    _, facts = losses.batch_hard_triplet(embeddings, identities, margin=0.5, squared=True)
    assert facts.hardest_positive.asscalar() == pytest.approx((1 + 1 + 16 + 16) / 4)


def test_an_anchor_without_a_triplet_does_not_count():
    """Points at 0, 1 and 3, the last one alone: positives 1, 1 away, negatives 3, 2 away, one of three anchors idle."""
    embeddings = mx.nd.array([[0], [1], [3]])
    loss, facts = losses.batch_hard_triplet(embeddings, mx.nd.array([0, 0, 1]), margin=1.5)
    assert loss.asscalar() == pytest.approx((0 + 0.5 + 0) / 3)
    assert [fact.asscalar() for fact in facts] == pytest.approx([1 / 3, 1, 2.5])
    loss, facts = losses.batch_hard_triplet(embeddings, mx.nd.array([7, 7, 7]), margin=1.5)  # nothing to compare with
    assert loss.asscalar() == 0 and [fact.asscalar() for fact in facts] == [0, 0, 0]


def test_near_points_have_their_distance_and_a_gradient():
    """3e-4 apart: below 1e-6, the clip, no gradient would flow."""
    x = mx.nd.array([[1e-4, 0], [1e-4, 3e-4]])
    x.attach_grad()
    with mx.autograd.record():
        apart = losses.distances(x)[0, 1]
    apart.backward()
    assert apart.asscalar() == pytest.approx(3e-4, rel=1e-3)
    np.testing.assert_allclose(x.grad.asnumpy(), [[0, -1], [0, 1]], atol=1e-3)


def test_the_miner_on_a_line():
    """Nine points on a line, as in pytorch-metric-learning's test of its batch-hard miner."""
    embeddings = mx.nd.arange(9).reshape((9, 1))
    identities = mx.nd.array([0, 0, 1, 1, 0, 2, 1, 1, 1])
    positive, _, usable = losses.hardest(losses.distances(embeddings), identities)
    assert usable.asnumpy().tolist() == [1, 1, 1, 1, 1, 0, 1, 1, 1]
    assert positive.asnumpy()[[0, 1, 2, 3, 4, 6, 7, 8]].tolist() == [4, 4, 8, 8, 0, 2, 2, 2]


def test_the_miners_negatives_are_the_nearest_of_another_identity():
    embeddings = mx.nd.array([[0], [1], [3], [7], [8], [20]])
    negative = losses.hardest(losses.distances(embeddings), mx.nd.array([0, 0, 1, 1, 0, 1]))[1]
    assert negative.asnumpy().tolist() == [2, 2, 1, 4, 3, 4]


def test_distances_equal_numpy():
    x = np.random.RandomState(0).randn(6, 4)
    expected = np.sqrt(((x[:, None] - x[None]) ** 2).sum(2))
    np.testing.assert_allclose(losses.distances(mx.nd.array(x)).asnumpy(), expected, atol=2e-3)
    off = ~np.eye(6, dtype=bool)
    np.testing.assert_allclose(losses.distances(mx.nd.array(x)).asnumpy()[off], expected[off], rtol=1e-5)


def test_gradients_are_finite_where_descriptors_coincide():
    embeddings = unit(np.random.RandomState(0).randn(8, 4))
    embeddings[4:] = embeddings[0]  # within an identity and across two
    loss, gradient = triplet_and_gradient(embeddings, [0, 0, 1, 1, 0, 0, 1, 1], 0.1)
    assert np.isfinite(loss) and np.isfinite(gradient).all()
    assert np.abs(gradient).max() < 10


def test_a_collapsed_batch_costs_the_margin():
    loss, _ = triplet_and_gradient(np.ones((6, 3)), [0, 0, 1, 1, 2, 2], 0.1)
    assert loss == pytest.approx(0.1, abs=1e-6)


def test_well_separated_identities_cost_nothing():
    loss, gradient = triplet_and_gradient(np.repeat(np.eye(3), 2, axis=0), [0, 0, 1, 1, 2, 2], 0.1)
    assert loss == 0 and not gradient.any()


@pytest.mark.parametrize("temperature, smoothing", [(0.5, 0.1), (1.0, 0.0), (2.0, 0.3)])
def test_smoothed_softmax_equals_the_formula(temperature, smoothing):
    random = np.random.RandomState(0)
    logits, identities = 3 * random.randn(7, 5), random.randint(5, size=7)
    loss = losses.smoothed_softmax(mx.nd.array(logits), mx.nd.array(identities), temperature, smoothing)
    expected = 0.0
    for row, identity in zip(logits / temperature, identities):
        probability = np.exp(row) / np.exp(row).sum()
        for k in range(5):
            target = smoothing / 5 + (1 - smoothing if k == identity else 0)
            expected -= target * np.log(probability[k]) / 7
    assert loss.asscalar() == pytest.approx(expected, rel=1e-5)


def test_smoothed_softmax_survives_large_logits():
    """Logits 4e4 apart after the temperature: the targets are 0.05 and 0.95."""
    loss = losses.smoothed_softmax(mx.nd.array([[1e4, -1e4]]), mx.nd.array([1]))
    assert loss.asscalar() == pytest.approx(0.95 * 4e4)
