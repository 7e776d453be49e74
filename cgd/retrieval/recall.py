"""Recall@K and nearest neighbours by exact Euclidean distance, with neither an N x N matrix nor a full sort.

A query hits at K exactly when fewer than K items of other classes are nearer than its nearest positive, the closest
item of its own class. So the nearest positives are found first, class by class, and then the nearer items of other
classes are counted, for every K at once. All pairs are met in blocks, as float32 matrix products; without a gallery
the blocks of the upper triangle suffice, for each serves the queries in its rows and those in its columns.

Closeness is minus half the squared distance. Rounding decides nothing: the products give each pair an upper bound of
its closeness, too high by at most twice the slack of its two vectors, and `_exact` settles in float64 the pairs that
this leaves open. Its values depend on nothing but the two vectors.
"""

from operator import index
from typing import NamedTuple

import numpy as np

_PAIRS = 64  # pairs settled at a time, so few that their float64 differences stay in the cache
_TOGETHER = 128  # classes smaller than this share their products: one by one they would take longer


def recall_at_k(embeddings, labels, ks, gallery=None, gallery_labels=None, *, block=1024):
    """Share of queries with at least one image of their class among their K nearest other images, for each K.

    embeddings: (N, D) array, the queries; taken as float32.
    labels: (N,) integers, the class of each query.
    ks: the values of K, at least one, each 1 or more, in any order.
    gallery, gallery_labels: (M, D) and (M,), the items to search; nothing is excluded from them. Without a gallery
        each query searches all the others: itself is excluded by its index, so an identical copy of it stays.
    block: rows and columns of the matrix products. Memory grows with its square; the result does not depend on it.

    Returns a list of floats from 0 to 1, one for each K, in the order of `ks`.

    Distances are Euclidean, on the vectors as given; for unit vectors the order is that of cosine similarity. An item
    of another class at the very same distance as the nearest positive counts as nearer, so that a collapsed network,
    whose descriptors are all equal, scores 0 and not 1. A query without any positive is a miss. Where K exceeds the
    number of items, every query with a positive is a hit.

    Raises ValueError for empty input, K or `block` below 1, shapes that do not match, labels that are not integers,
    a gallery without labels or labels without a gallery, and vectors that are not finite in float32.

    Recall@K is that of Oh Song et al., "Deep Metric Learning via Lifted Structured Feature Embedding" (CVPR 2016).
    Euclidean distance and exclusion by index are as in evaluator.py of the CGD authors' release (naver/cgd).
    """
    ks = [index(k) for k in ks]
    if not ks or min(ks) < 1:
        raise ValueError(f"ks must hold at least one K, each 1 or more, but is {ks}")
    if block < 1:
        raise ValueError(f"block must be 1 or more, but is {block}")
    if (gallery is None) != (gallery_labels is None):
        raise ValueError("gallery and gallery_labels go together: give both or neither")
    queries = items = _images("embeddings", embeddings, "labels", labels)
    if gallery is not None:
        items = _images("gallery", gallery, "gallery_labels", gallery_labels)
        _check_columns(queries.vectors, items.vectors)
    positive = _nearest_positive(queries, items, block)
    nearer = _count_nearer(queries, items, positive, max(ks), block)
    return [float(np.mean((positive > -np.inf) & (nearer < k))) for k in ks]


def nearest(embeddings, k, gallery=None):
    """The k nearest items of each query, nearest first, items at the very same distance in the order of their index.

    embeddings: (N, D) array, the queries; taken as float32.
    k: how many items: from 1 to M, or to N - 1 without a gallery.
    gallery: (M, D) array, the items to search. Without it each query searches all the others, itself excluded by its
        index.

    Returns an (N, k) array of indices into the gallery, or into the embeddings. Distances are Euclidean and exact, as
    in `recall_at_k`. A block of 256 x M values is held at a time.

    Raises ValueError for empty input, k out of range, shapes that do not match, and vectors that are not finite in
    float32.
    """
    x = _vectors("embeddings", embeddings)
    y = x if gallery is None else _vectors("gallery", gallery)
    _check_columns(x, y)
    most = len(y) - (gallery is None)
    if not 1 <= k <= most:
        raise ValueError(f"k must be from 1 to {most}, the number of items to search, but is {k}")
    a, b = _points(x, y)
    columns = slice(0, len(y))
    floor, found = np.empty(len(x)), np.empty((len(x), k), np.intp)
    for rows in _slices(len(x), 256):
        bound = _bound(a, rows, b, columns)
        if gallery is None:
            np.fill_diagonal(bound[:, rows], -np.inf)
        # The k items with the greatest bounds are all closer than this, and so are the k nearest.
        top = np.argpartition(bound, -k, axis=1)[:, -k:]
        least = np.take_along_axis(bound, top, axis=1) - 2 * (a.slack[rows, None] + b.slack[top])
        floor[rows] = least.min(axis=1)
        i, j, _ = _reaching(bound, rows, columns, floor)
        order = np.lexsort((j, -_exact(a, i, b, j), i))
        first = np.searchsorted(i, np.arange(rows.start, rows.stop))  # of each query, before and after sorting
        found[rows] = j[order][first[:, None] + np.arange(k)]
    return found


class _Images(NamedTuple):
    vectors: np.ndarray  # (n, D) float32
    labels: np.ndarray  # (n,) int64


class _Points(NamedTuple):
    given: np.ndarray  # (n, D) float32
    scale: float  # a power of two
    moved: np.ndarray  # (n, D) float32: the vectors around a common centre, scaled
    offset: np.ndarray  # (n,) float32: half the squared norm of `moved`, less the slack
    slack: np.ndarray  # (n,) float64


def _nearest_positive(queries, items, block):
    """(N,) closeness of each query to the nearest other item of its class, -inf where there is none."""
    positive = np.full(len(queries.labels), -np.inf)
    for members, group in _by_class(queries.labels, items.labels):
        x = _Images(queries.vectors[members], queries.labels[members])
        y = x if items is queries else _Images(items.vectors[group], items.labels[group])
        positive[members] = _best_closeness(x, y, block)
    return positive


def _best_closeness(queries, items, block):
    """What `_nearest_positive` finds, for one of the groups of `_by_class`."""
    a, b = _points(queries.vectors, items.vectors)
    copy = _first_copies(b)
    best = np.full(len(a.given), -np.inf)

    def improve(i, j):
        exact = _exact(a, i, b, j)
        exact[(queries.labels[i] != items.labels[j]) | ((i == j) & (items is queries))] = -np.inf
        np.maximum.at(best, i, exact)

    for rows, columns, bound in _blocks(a, b, best, block):
        bound[queries.labels[rows, None] != items.labels[columns]] = -np.inf
        if items is queries and rows == columns:
            np.fill_diagonal(bound, -np.inf)
        improve(np.arange(rows.start, rows.stop), columns.start + bound.argmax(axis=1))
        i, j, _ = _reaching(bound, rows, columns, np.where(best > -np.inf, best, np.inf))
        _, first = np.unique(copy[j] * len(best) + i, return_index=True)  # of the copies of an item, one will do
        improve(i[first], j[first])
    return best / a.scale**2


def _count_nearer(queries, items, positive, enough, block):
    """(N,) number of items of other classes at most as far as the nearest positive; right up to `enough`."""
    a, b = _points(queries.vectors, items.vectors)
    copy = _first_copies(b)
    positive = positive * a.scale**2
    floor = np.where(positive > -np.inf, positive, np.inf)
    nearer = np.zeros(len(positive), np.intp)
    for rows, columns, bound in _blocks(a, b, floor, block):
        i, j, value = _reaching(bound, rows, columns, floor)
        other = queries.labels[i] != items.labels[j]
        i, j, value = i[other], j[other], value[other]
        sure = value - 2 * (a.slack[i] + b.slack[j]) >= positive[i]
        nearer[rows] += np.bincount(i[sure] - rows.start, minlength=len(bound))
        # The others vector by vector: no query is settled far beyond enough, and copies of an item only once.
        pairs, times = np.unique(copy[j[~sure]] * len(nearer) + i[~sure], return_counts=True)
        for part in _slices(len(pairs), 1024):
            j, i = np.divmod(pairs[part], len(nearer))
            wanted = nearer[i] < enough
            i, j = i[wanted], j[wanted]
            np.add.at(nearer, i, times[part][wanted] * (_exact(a, i, b, j) >= positive[i]))
        floor[rows][nearer[rows] >= enough] = np.inf
    return nearer


def _exact(a, i, b, j):
    """(n,) float64 closeness of the pairs a[i], b[j]; the same two vectors give the same value anywhere."""
    closeness = np.empty(len(i))
    for part in _slices(len(i), _PAIRS):
        difference = np.subtract(a.given[i[part]], b.given[j[part]], dtype=np.float64)
        closeness[part] = -0.5 * a.scale**2 * np.square(difference, out=difference).sum(axis=1)
    return closeness


def _points(x, y):
    """Make x and y ready for the float32 products, around the mean of y and scaled; one of them twice where y is x."""
    centre = y.mean(axis=0, dtype=np.float64)
    scale = 2.0 ** -int(np.frexp(max(x.max(), -x.min(), y.max(), -y.min()))[1])  # to below 1: no product overflows
    a = _around(centre, scale, x)
    return a, (a if y is x else _around(centre, scale, y))


def _around(centre, scale, given):
    """Move the centre to the origin, scale, and find the slack of each vector.

    Summed in any order, D float32 products are off by at most g |x| |y|, where g = D u / (1 - D u) and u = 2 ** -24
    (Higham, "Accuracy and Stability of Numerical Algorithms", section 3.1), and |x| |y| <= |x|^2 / 2 + |y|^2 / 2.
    So the error of a pair is at most a sum of two parts, one for each vector. Rounding the vectors, taking away their
    norms and rounding the floor that the bound is held against add less than 10 u to g; 16 leaves room for float64.
    """
    moved, half = np.empty(given.shape, np.float32), np.empty(len(given))
    for rows in _slices(len(given), 1024):
        exact = scale * np.subtract(given[rows], centre, dtype=np.float64)
        moved[rows] = exact
        half[rows] = 0.5 * np.square(exact, out=exact).sum(axis=1)
    roundings = (given.shape[1] + 16) * 2.0**-24
    slack = roundings / (1 - roundings) * (half + 2.0**-90)  # and a little for numbers below the range of float32
    return _Points(given, scale, moved, (half - slack).astype(np.float32), slack)


def _bound(a, rows, b, columns):
    """Float32 upper bounds of the closeness of the pairs, too high by at most 2 * (slack + slack)."""
    bound = a.moved[rows] @ b.moved[columns].T
    bound -= a.offset[rows, None]
    bound -= b.offset[columns]
    return bound


def _blocks(a, b, floor, block):
    """Yield (rows, columns, bound) for every block in which a row has a floor below inf; the caller raises the floors.

    Where b is a, a block off the diagonal is computed once and yielded a second time the other way round.
    """
    for rows in _slices(len(a.given), block):
        for columns in _slices(len(b.given), block, start=rows.start if b is a else 0):
            mirrored = b is a and rows != columns and (floor[columns] < np.inf).any()
            if mirrored or (floor[rows] < np.inf).any():
                bound = _bound(a, rows, b, columns)
                yield rows, columns, bound
                if mirrored:
                    yield columns, rows, bound.T


def _reaching(bound, rows, columns, floor):
    """(i, j, bound) of the pairs of a block whose bound is at or above the floor of its row."""
    mask = bound >= floor[rows, None].astype(np.float32)  # float64 would take twice the time
    order = "C" if mask.flags.c_contiguous else "F"  # as it lies in memory: a copy would cost more than the rest
    i, j = np.unravel_index(np.flatnonzero(mask.ravel(order)), mask.shape, order)
    return i + rows.start, j + columns.start, bound[i, j]


def _first_copies(points):
    """(n,) index of the first vector that is equal to each."""
    _, first, inverse = np.unique(points.slack, return_index=True, return_inverse=True)
    copy = first[inverse]
    later = np.flatnonzero(copy != np.arange(len(copy)))  # equal vectors have the same slack, but others might, too
    for part in _slices(len(later), 1024):
        i = later[part]
        unequal = (points.given[i] != points.given[copy[i]]).any(axis=1)
        copy[i[unequal]] = i[unequal]
    return copy


def _by_class(query_labels, item_labels):
    """[(indices of the queries, indices of the items)] of the classes: of a large one, or of some small ones."""
    classes, sizes = np.unique(item_labels, return_counts=True)
    group = (np.cumsum(sizes) - sizes) // _TOGETHER
    group_of_query = group[np.minimum(np.searchsorted(classes, query_labels), len(classes) - 1)]
    group_of_item = group[np.searchsorted(classes, item_labels)]
    return [
        (np.flatnonzero(group_of_query == g), np.flatnonzero(group_of_item == g)) for g in np.unique(group_of_query)
    ]


def _slices(stop, size, start=0):
    return [slice(at, min(at + size, stop)) for at in range(start, stop, size)]


def _images(name, vectors, labels_name, labels):
    vectors, labels = _vectors(name, vectors), np.asarray(labels)
    if labels.shape != (len(vectors),):
        raise ValueError(f"{labels_name} must have the shape ({len(vectors)},), but has {labels.shape}")
    if labels.dtype.kind not in "iu":
        raise ValueError(f"{labels_name} must be integers, but are {labels.dtype}")
    return _Images(vectors, labels.astype(np.int64))


def _vectors(name, vectors):
    with np.errstate(over="ignore"):  # what overflows here is reported below
        vectors = np.asarray(vectors, np.float32)
    if vectors.ndim != 2 or 0 in vectors.shape:
        raise ValueError(f"{name} must have rows and columns, but has the shape {vectors.shape}")
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise ValueError(f"{name}: row {finite.argmin()} is not finite in float32")
    return vectors


def _check_columns(x, y):
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"embeddings have {x.shape[1]} columns, but the gallery has {y.shape[1]}")
