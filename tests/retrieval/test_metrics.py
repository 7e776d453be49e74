"""Measures against a slow float64 reference, and intervals against what is known of them."""

import numpy as np
import pytest

from cgd.data.datasets import Class
from cgd.retrieval import metrics, recall
from cgd.system.errors import InputError

NAMES = ("map@r", "r-precision", "precision@1", "precision@7", "precision@50")


def reference(embeddings, labels, gallery=None, gallery_labels=None):
    """The definitions, one query at a time: {name: [value]}."""
    items = embeddings if gallery is None else gallery
    item_labels = labels if gallery is None else gallery_labels
    values = {name: [] for name in NAMES}
    for number, (query, label) in enumerate(zip(embeddings, labels)):
        neighbours = []
        for place, (item, item_label) in enumerate(zip(items, item_labels)):
            if gallery is not None or place != number:
                distance = ((item.astype(np.float64) - query.astype(np.float64)) ** 2).sum()
                neighbours.append((distance, item_label == label))
        matches = [same for _, same in sorted(neighbours)]
        positives = sum(matches)
        for k in (1, 7, 50):
            values[f"precision@{k}"].append(sum(matches[:k]) / k)
        precision = [sum(matches[: i + 1]) / (i + 1) for i in range(len(matches))]
        summed = sum(p for p, same in zip(precision[:positives], matches) if same)
        values["map@r"].append(summed / positives if positives else 0)
        values["r-precision"].append(sum(matches[:positives]) / positives if positives else 0)
    return values


def clusters(random, count, dim=5):
    """Vectors around the centres of their classes, of sizes from 1 to many; a class is absent from the gallery."""
    labels = np.sort(random.randint(0, 8, count) ** 2 // 4)
    return (random.randn(50, dim)[labels] + random.randn(count, dim)).astype(np.float32), labels


@pytest.mark.parametrize("pairs", [1 << 22, 40])
@pytest.mark.parametrize("with_gallery", [False, True])
@pytest.mark.parametrize("ties", ["none", "many", "all"])
def test_measures_are_those_of_the_definitions(with_gallery, ties, pairs, monkeypatch):
    monkeypatch.setattr(metrics, "PAIRS", pairs)
    random = np.random.RandomState(0)
    x, labels = clusters(random, 45)
    more, more_labels = clusters(random, 61)
    if ties == "many":
        x, more = np.round(x), np.round(more)
    if ties == "all":
        x, more = np.zeros_like(x), np.zeros_like(more)
    gallery = (more, more_labels) if with_gallery else ()
    expected, found = reference(x, labels, *gallery), metrics.measure(NAMES, x, labels, *gallery)
    assert list(found) == list(NAMES)
    for name in NAMES:
        assert np.abs(found[name] - expected[name]).max() < 1e-12, name
    hits = recall.count_nearer(x, labels, 1, *gallery) < 1
    assert np.array_equal(hits, found["precision@1"] == 1)


def test_ranks_beyond_the_last_item_cost_nothing(monkeypatch):
    x, labels = np.arange(6.0)[:, None], np.array([0, 0, 0, 1, 1, 1])
    calls, nearest = [], recall.nearest
    monkeypatch.setattr(recall, "nearest", lambda *words, **more: calls.append(words[1]) or nearest(*words, **more))
    found = metrics.measure(("precision@999999", "map@r"), x, labels)
    assert calls == [6] and found["precision@999999"] == pytest.approx(2 / 999999)
    alone = metrics.measure(("precision@3", "map@r"), x[:1], labels[:1])
    assert [values.tolist() for values in alone.values()] == [[0], [0]]


def test_a_case_by_hand():
    """One query's neighbours: right, wrong, right, and R = 3 with the one that is far: MAP@R = (1 + 2/3) / 3."""
    x = np.array([[0.0], [1.0], [2.0], [3.0], [9.0], [50.0], [60.0]])
    labels = np.array([0, 0, 1, 0, 0, 2, 3])
    found = metrics.measure(("map@r", "r-precision", "precision@2"), x, labels)
    assert [found[name][0] for name in found] == [pytest.approx((1 + 2 / 3) / 3), pytest.approx(2 / 3), 0.5]
    assert found["map@r"][5] == 0  # without a positive


@pytest.mark.parametrize("text", ["map", "precision@0", "precision@k", "map@r,", ""])
def test_unknown_measures_are_one_line(text):
    with pytest.raises(InputError, match="expected map@r, r-precision or precision@K"):
        metrics.parse(text)


def test_names_are_parsed():
    assert metrics.parse("MAP@R,precision@10") == ("map@r", "precision@10")


def test_the_interval_is_that_of_independent_classes():
    """With one query in each class, the share of hits is binomial: its standard error is known."""
    hits = np.arange(400) % 4 == 0
    low, high = metrics.interval(hits, np.arange(400))
    error = np.sqrt(0.25 * 0.75 / 400)
    assert low == pytest.approx(0.25 - 1.96 * error, abs=0.003)
    assert high == pytest.approx(0.25 + 1.96 * error, abs=0.003)


def test_queries_of_a_class_are_not_independent():
    """Each class is right or wrong as a whole: 40 queries of 10 classes are worth 10."""
    labels = np.repeat(np.arange(10), 40)
    low, high = metrics.interval(labels % 2 == 0, labels)
    assert high - low > 0.5
    low, high = metrics.interval(np.arange(400) % 2 == 0, labels)  # half of each class: no class tells more
    assert high - low < 1e-9


def test_a_paired_difference_is_surer_than_two_shares():
    random = np.random.RandomState(0)
    labels = np.arange(500)
    one = random.random_sample(500) < 0.4
    other = one.copy()
    other[np.flatnonzero(~one)[:15]] = True  # better by 15 queries, nowhere worse
    low, high = metrics.interval(other, labels, one)
    assert 0 < low < 15 / 500 < high < 0.05
    assert metrics.interval(one, labels, one) == (0, 0)


def test_classes_are_listed_worst_first():
    classes = [Class(7, "wren"), Class(9, "kite"), Class(11, "")]
    found = metrics.by_class(np.array([True, False, True, True, False]), np.array([0, 0, 1, 1, 2]), classes)
    assert [(entry["id"], entry["name"], entry["images"], entry["R@1"]) for entry in found] == [
        (11, "", 1, 0.0),
        (7, "wren", 2, 0.5),
        (9, "kite", 2, 1.0),
    ]
