"""Recall@K and nearest neighbours against a plain float64 reference that sorts every distance."""

import tracemalloc

import numpy as np
import pytest

from cgd.retrieval import recall as recall_module
from cgd.retrieval.recall import nearest, recall_at_k

KS = (2, 1000, 5, 30, 1)


def squared_distances(x, y):
    x, y = (np.asarray(v, np.float32).astype(np.float64) for v in (x, y))
    return np.array([np.square(y - row).sum(axis=1) for row in x])


def reference_recall(x, labels, ks, gallery=None, gallery_labels=None):
    """Sort all items by distance, at equal distances the other classes first, and look for the first positive."""
    y, y_labels = (x, labels) if gallery is None else (gallery, gallery_labels)
    hits = np.zeros(len(ks))
    for query, distances in enumerate(squared_distances(x, y)):
        positive = np.asarray(y_labels) == labels[query]
        order = np.lexsort((positive, distances))
        if gallery is None:
            order = order[order != query]
        hits += [positive[order[:k]].any() for k in ks]
    return (hits / len(x)).tolist()


def reference_nearest(x, k, gallery=None):
    found = []
    for query, distances in enumerate(squared_distances(x, x if gallery is None else gallery)):
        order = np.argsort(distances, kind="stable")
        found.append(order[order != query][:k] if gallery is None else order[:k])
    return found


def normal(rng, n, dim):
    return rng.standard_normal((n, dim))


def unit(rng, n, dim):
    x = normal(rng, n, dim)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


# What makes a set of vectors hard: exact ties, copies, vectors that float32 products cannot tell apart, extreme sizes.
KINDS = {
    "unit": unit,
    "integers": lambda rng, n, dim: rng.integers(-1, 2, (n, dim)),
    "copies": lambda rng, n, dim: unit(rng, n // 6 + 1, dim)[rng.integers(0, n // 6 + 1, n)],
    "half zero": lambda rng, n, dim: unit(rng, n, dim) * rng.integers(0, 2, (n, 1)),
    "equal": lambda rng, n, dim: np.full((n, dim), 0.1),
    "nearly equal": lambda rng, n, dim: 7 + 1e-6 * normal(rng, n, dim),
    "two tight clusters": lambda rng, n, dim: rng.choice([-5, 3], (n, 1)) + 1e-6 * rng.integers(-3, 4, (n, dim)),
    "long": lambda rng, n, dim: 1e37 * normal(rng, n, dim),
    "tiny": lambda rng, n, dim: 1e-43 * normal(rng, n, dim),
    "lengths over 40 orders": lambda rng, n, dim: normal(rng, n, dim) * 10.0 ** rng.integers(-22, 18, (n, 1)),
}


@pytest.mark.parametrize("dim", (1, 3, 64))
@pytest.mark.parametrize("kind", KINDS)
def test_recall_is_that_of_a_full_sort(kind, dim):
    rng = np.random.default_rng(dim)
    for classes in (2, 30, 70):  # large ones; a few images each; many lone images
        x = KINDS[kind](rng, 90, dim).astype(np.float32)
        labels = rng.integers(0, classes, len(x))
        expected = reference_recall(x, labels, KS)
        for block in (13, 32, 1024):
            assert recall_at_k(x, labels, KS, block=block) == pytest.approx(expected)
            assert recall_at_k(x, labels, KS[:1], block=block) == pytest.approx(expected[:1])  # ends early


@pytest.mark.parametrize("kind", KINDS)
def test_recall_with_a_gallery_is_that_of_a_full_sort(kind):
    rng = np.random.default_rng(1)
    x = KINDS[kind](rng, 90, 16).astype(np.float32)
    labels = rng.integers(0, 30, len(x))
    queries, gallery = slice(0, 40), slice(30, 90)  # ten of the queries are in the gallery, where they count
    expected = reference_recall(x[queries], labels[queries], KS, x[gallery], labels[gallery])
    for block in (13, 1024):
        recall = recall_at_k(x[queries], labels[queries], KS, x[gallery], labels[gallery], block=block)
        assert recall == pytest.approx(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_nearest_is_that_of_a_full_sort(kind):
    rng = np.random.default_rng(2)
    x = KINDS[kind](rng, 270, 16).astype(np.float32)  # more than one block of 256 queries
    for k in (1, 5, 269):
        assert np.array_equal(nearest(x, k), reference_nearest(x, k))
    for k in (1, 5, 40):
        assert np.array_equal(nearest(x, k, x[:40]), reference_nearest(x, k, x[:40]))


@pytest.mark.parametrize("kind", KINDS)
def test_nearest_does_not_depend_on_the_blocks(kind, monkeypatch):
    rng = np.random.default_rng(7)
    x = KINDS[kind](rng, 90, 16).astype(np.float32)
    monkeypatch.setattr(recall_module, "_BLOCK", 13)
    for k in (1, 5, 89):
        assert np.array_equal(nearest(x, k), reference_nearest(x, k))
    for k in (1, 5, 40):
        assert np.array_equal(nearest(x, k, x[:40]), reference_nearest(x, k, x[:40]))


def test_items_that_come_nearer_and_nearer(monkeypatch):
    """Sorted from far to near, every block has new neighbours for every query."""
    monkeypatch.setattr(recall_module, "_BLOCK", 100)
    x = np.arange(1000, 0, -1)[:, None] * [[0.5, 1.0]]
    assert np.array_equal(nearest([[0, 0], [0, 1]], 3, x), [[999, 998, 997]] * 2)
    assert np.array_equal(nearest(x, 2), reference_nearest(x, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_distances(kind):
    rng = np.random.default_rng(8)
    x = KINDS[kind](rng, 60, 16).astype(np.float32)
    found, distances = nearest(x[:7], 5, x, return_distances=True)
    assert np.array_equal(found, nearest(x[:7], 5, x))
    expected = np.sqrt(np.sort(squared_distances(x[:7], x), axis=1)[:, :5])
    assert distances.dtype == np.float64 and distances == pytest.approx(expected, rel=1e-12, abs=0)


@pytest.mark.parametrize("dtype", (np.float16, np.float32))
def test_a_gallery_on_disk_is_not_copied(dtype, tmp_path):
    rng = np.random.default_rng(9)
    gallery = np.lib.format.open_memmap(tmp_path / "gallery.npy", "w+", dtype, (30_000, 64))
    gallery[:] = unit(rng, 30_000, 64)
    queries = unit(rng, 3, 64).astype(np.float32)
    tracemalloc.start()
    found = nearest(queries, 4, gallery)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(found, reference_nearest(queries, 4, np.asarray(gallery)))
    assert peak < 3e6  # in float16 the gallery has 3.8 MB
    gallery[20_000, 3] = np.nan
    with pytest.raises(ValueError, match="gallery: row 20000 is not finite"):
        nearest(queries, 4, gallery)


def test_by_hand():
    x = [[0.0], [1.0], [3.0], [7.0], [8.0], [20.0]]
    labels = [0, 1, 0, 1, 1, 2]
    # Nearer than the nearest positive are: 1 item, 2, 1, 0 and 0; the last image is the only one of its class.
    assert recall_at_k(x, labels, [1, 2, 3, 100]) == [2 / 6, 4 / 6, 5 / 6, 5 / 6]
    assert recall_at_k(x, labels, [100, 1]) == [5 / 6, 2 / 6]
    assert nearest(x, 2).tolist() == [[1, 2], [0, 2], [1, 0], [4, 2], [3, 2], [4, 3]]


@pytest.mark.parametrize("block", (2, 1024))
def test_a_hair_decides(block):
    """Three images: a query, its positive, and another class that is nearer, as near, or farther by one bit."""
    rng = np.random.default_rng(3)
    step = rng.integers(1, 2**10, 1536) / 2**12  # in float32 the query -+ step is exact, and the products are not
    query = rng.integers(-(2**10), 2**10, 1536) / 2**10
    for nudge, hit in ((-(2.0**-23), 0), (0, 0), (2.0**-23, 1)):
        other = query + step
        other[5] += nudge
        x = np.array([query - step, query, other], np.float32)
        assert (x == [query - step, query, other]).all()
        assert recall_at_k(x[1:2], [0], [1], x[[0, 2]], [0, 1], block=block) == [hit]
        assert recall_at_k(x, [0, 0, 1], [1], block=block) == pytest.approx([(hit + 1) / 3])
        assert nearest(x[1:2], 2, x[[2, 0]]).tolist() == [[1, 0] if hit else [0, 1]]


def test_a_collapsed_network_scores_zero():
    equal = np.full((50, 8), 0.3)
    assert recall_at_k(equal, np.arange(50) % 10, [1, 45, 46]) == [0, 0, 1]  # 45 images are of other classes


def test_a_copy_of_the_query_is_found_but_the_query_is_not():
    x = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    assert recall_at_k(x, [0, 0, 1], [1, 2]) == [2 / 3, 2 / 3]
    assert nearest(x, 1)[:2].tolist() == [[1], [0]]


def test_each_query_is_left_out_of_its_own_neighbours():
    """Also where it has so many copies that it is not among the nearest: one of them is then left out."""
    x = np.random.RandomState(0).randint(0, 3, (30, 2)).astype(np.float32)
    own = np.array([4, 17, 29])
    for k in (1, 5, 29, 99):
        found, distances = recall_module.nearest_others(x[own], own, k, x)
        assert found.shape == distances.shape == (3, min(k, 29))
        for row, query in enumerate(own):
            far = np.sort(np.linalg.norm(np.delete(x, query, 0) - x[query], axis=1))
            assert query not in found[row] and len(set(found[row])) == found.shape[1]
            np.testing.assert_allclose(distances[row], far[: found.shape[1]], atol=1e-6)
            np.testing.assert_allclose(np.linalg.norm(x[found[row]] - x[query], axis=1), distances[row], atol=1e-6)


def test_nothing_is_excluded_from_a_gallery_even_where_it_is_the_queries():
    x = np.eye(4, dtype=np.float32)
    labels = np.arange(4)
    assert recall_at_k(x, labels, [1]) == [0]
    assert recall_at_k(x, labels, [1], x, labels) == [1]
    assert recall_at_k(x, labels, [1, 4], x, labels[::-1]) == [0, 1]


@pytest.mark.parametrize("dtype", (np.uint8, np.int32, np.uint64, list))
def test_labels_of_any_integer_type(dtype):
    labels = dtype([200, 200, 7, 7])
    assert recall_at_k([[0.0], [1.0], [5.0], [9.0]], labels, [1]) == [0.75]


@pytest.mark.parametrize("long, short", ((1e37, 1e-3), (1e-3, 1e37)))
def test_queries_and_gallery_of_very_different_lengths(long, short):
    rng = np.random.default_rng(4)
    x, y = (long * normal(rng, 40, 8)).astype(np.float32), (short * normal(rng, 40, 8)).astype(np.float32)
    labels = np.arange(40) % 10
    assert recall_at_k(x, labels, KS, y, labels) == pytest.approx(reference_recall(x, labels, KS, y, labels))


def test_distances_below_the_range_of_float32():
    # The squares of the small differences vanish in float32, beside vectors as long as the first two.
    x = [[1e30], [-1e30], [0.0], [3e-20], [-5e-20]]
    assert recall_at_k(x, [3, 4, 0, 0, 1], [1]) == [2 / 5]
    assert recall_at_k(x, [3, 4, 0, 1, 0], [1]) == [1 / 5]


HARD_SETS = {
    "equal": lambda rng, classes: np.full((2000, 32), 0.3),
    "nearly equal": lambda rng, classes: 7 + 1e-5 * normal(rng, 2000, 32),
    "half zero": lambda rng, classes: unit(rng, 2000, 32) * rng.integers(0, 2, (2000, 1)),
    "copies": lambda rng, classes: unit(rng, 20, 32)[rng.integers(0, 20, 2000)],
    "tight classes": lambda rng, classes: unit(rng, 400, 32)[classes] + 1e-6 * normal(rng, 2000, 32),
}


@pytest.fixture
def settled(monkeypatch):
    """The numbers of pairs that are settled in float64, call by call."""
    calls, exact = [], recall_module._exact
    monkeypatch.setattr(recall_module, "_exact", lambda a, i, b, j: calls.append(len(i)) or exact(a, i, b, j))
    return calls


@pytest.mark.parametrize("classes", (2, 400))
@pytest.mark.parametrize("kind", HARD_SETS)
def test_few_pairs_need_to_be_settled(kind, classes, settled):
    rng = np.random.default_rng(5)
    labels = rng.integers(0, classes, 2000)
    recall_at_k(HARD_SETS[kind](rng, labels), labels, [1, 100], block=256)
    assert sum(settled) < 25 * 2000  # of 2000 * 2000


@pytest.mark.parametrize("kind", ("equal", "copies", "half zero"))
def test_of_many_copies_only_those_that_may_be_neighbours_are_settled(kind, settled, monkeypatch):
    """As those of a collapsed network: otherwise all 2000 * 2000 pairs are computed in float64."""
    monkeypatch.setattr(recall_module, "_BLOCK", 256)
    nearest(HARD_SETS[kind](np.random.default_rng(5), None), 3)
    assert sum(settled) < 16 * 3 * 2000


def test_a_query_that_has_missed_needs_no_more_settling(settled):
    rng = np.random.default_rng(6)
    two_clusters = rng.choice([-5, 3], (2000, 1)) + 1e-6 * normal(rng, 2000, 32)
    recall_at_k(two_clusters, rng.integers(0, 400, 2000), [1])
    assert sum(settled) < 25 * 2000


@pytest.mark.parametrize("classes", (5, 1000))
def test_queries_whose_answer_is_known_need_no_more_products(classes, monkeypatch):
    """All vectors equal: with 5 classes every query misses soon; with 1000 classes none has a positive."""
    sizes, bound = [], recall_module._bound

    def counted(*args):
        sizes.append(bound(*args).size)
        return bound(*args)

    monkeypatch.setattr(recall_module, "_bound", counted)
    recall_at_k(np.full((1000, 4), 0.3), np.arange(1000) % classes, [1, 10], block=50)
    assert sum(sizes) < 200_000  # of 525 000, and those for the nearest positives


def test_memory_does_not_grow_with_the_square():
    rng = np.random.default_rng(6)
    x, labels = normal(rng, 5000, 8).astype(np.float32), rng.integers(0, 1000, 5000)
    for search in (lambda: recall_at_k(x, labels, [1, 10], block=128), lambda: nearest(x[:300], 3, x)):
        tracemalloc.start()
        search()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 25e6  # a matrix of all pairs has 100 MB


@pytest.mark.parametrize(
    "change, message",
    (
        ({"ks": []}, "at least one K"),
        ({"ks": [1, 0]}, "each 1 or more"),
        ({"block": 0}, "block must be 1 or more"),
        ({"embeddings": np.zeros((0, 2)), "labels": []}, r"embeddings must have rows and columns"),
        ({"embeddings": np.zeros((3, 0))}, r"embeddings must have rows and columns"),
        ({"embeddings": np.zeros(3)}, r"embeddings must have rows and columns"),
        ({"embeddings": [[0, 0], [0, np.nan], [np.inf, 0]]}, "embeddings: row 1 is not finite"),
        ({"embeddings": [[0, 0], [0, 0], [0, -np.inf]]}, "embeddings: row 2 is not finite"),
        ({"embeddings": [[0, 0], [1e200, 0], [0, 0]]}, "embeddings: row 1 is not finite in float32"),
        ({"labels": [0, 1]}, r"labels must have the shape \(3,\), but has \(2,\)"),
        ({"labels": [[0], [1], [2]]}, r"labels must have the shape \(3,\), but has \(3, 1\)"),
        ({"labels": [0.0, 1.0, 2.0]}, "labels must be integers, but are float64"),
        ({"gallery": np.zeros((2, 2))}, "give both or neither"),
        ({"gallery_labels": [0, 1]}, "give both or neither"),
        ({"gallery": np.zeros((2, 3)), "gallery_labels": [0, 1]}, "2 columns, but the gallery has 3"),
        ({"gallery": np.zeros((2, 2)), "gallery_labels": [0]}, r"gallery_labels must have the shape \(2,\)"),
        ({"gallery": [[0, np.nan]], "gallery_labels": [0]}, "gallery: row 0 is not finite"),
    ),
)
def test_wrong_input_to_recall(change, message):
    arguments = {"embeddings": np.zeros((3, 2)), "labels": [0, 1, 2], "ks": [1]}
    with pytest.raises(ValueError, match=message) as caught:
        recall_at_k(**{**arguments, **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments, message",
    (
        ((np.zeros((3, 2)), 3), "k must be from 1 to 2"),
        ((np.zeros((3, 2)), 0), "k must be from 1 to 2"),
        ((np.zeros((1, 2)), 1), "k must be from 1 to 0"),
        ((np.zeros((1, 2)), 4, np.zeros((3, 2))), "k must be from 1 to 3"),
        ((np.zeros((3, 2)), 1, np.zeros((3, 1))), "2 columns, but the gallery has 1"),
        (([[0], [np.nan]], 1), "embeddings: row 1 is not finite"),
        (([[0]], 1, [[np.inf]]), "gallery: row 0 is not finite"),
    ),
)
def test_wrong_input_to_nearest(arguments, message):
    with pytest.raises(ValueError, match=message):
        nearest(*arguments)
