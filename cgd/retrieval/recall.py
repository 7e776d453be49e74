"""Recall@K and nearest neighbours by exact Euclidean distance, without an N x N matrix or a full sort.

A query is a hit at K if and only if fewer than K items of other classes are closer than its nearest positive, the
closest item of its own class. The nearest positives are found first, class by class; then the closer items of other
classes are counted, for all K at once. Pairs are processed in blocks, as float32 matrix products. Without a gallery the
blocks of the upper triangle suffice, because each serves the queries of its rows and of its columns.

Closeness is minus half the squared distance. The result does not depend on rounding: the products give an upper bound
of the closeness of each pair, which exceeds it by at most twice the slack of both vectors, and `_exact` decides the
remaining pairs in float64, with values that depend on the two vectors only.
"""

from operator import index
from typing import NamedTuple

import numpy as np

_PAIRS = 64  # pairs computed at a time in float64; small enough for their differences to stay in the cache
_GROUP = 128  # items of classes that share a matrix product; products of single small classes are slow


def recall_at_k(embeddings, labels, ks, gallery=None, gallery_labels=None, *, block=1024):
    """Recall@K: the share of queries with at least one item of their class among their K nearest items, for each K.

    embeddings : (N, D) array, the queries; converted to float32
    labels : (N,) integers, the class of each query
    ks : the values of K, at least one, each 1 or more, in any order
    gallery, gallery_labels : (M, D) and (M,), the items to search, none of which is excluded. Without a gallery, each
        query is searched among all the others; it is excluded by index, so identical copies of it remain
    block : rows and columns of the matrix products. Memory grows with its square; the result does not depend on it

    Returns a list of floats from 0 to 1, one for each K, in the order of `ks`.

    Distances are Euclidean; vectors are not normalised. For unit vectors the order is that of cosine similarity. Ties
    are pessimistic: an item of another class at the same distance as the nearest positive counts as closer, so a
    collapsed network, whose embeddings are all equal, scores 0, not 1. A query without a positive is a miss. If K
    exceeds the number of items, every query with a positive is a hit.

    Raises ValueError for empty input, K or `block` below 1, mismatched shapes, labels that are not integers, a gallery
    without labels or labels without a gallery, and vectors that are not finite in float32.

    Recall@K is defined in Oh Song et al., "Deep Metric Learning via Lifted Structured Feature Embedding" (CVPR 2016).
    Euclidean distance and exclusion by index follow evaluator.py of the CGD authors' release (naver/cgd).
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
    """The k nearest items of each query, nearest first; items at the same distance are in the order of their index.

    embeddings : (N, D) array, the queries; converted to float32
    k : number of neighbours, from 1 to M, or to N - 1 without a gallery
    gallery : (M, D) array, the items to search. Without it, each query is searched among all the others

    Returns an (N, k) array of indices into the gallery, or into the embeddings. Distances are Euclidean and exact, as
    in `recall_at_k`. Memory: blocks of 256 x M values.

    Raises ValueError for empty input, k out of range, mismatched shapes, and vectors that are not finite in float32.
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
        # The k items with the greatest bounds are at least this close, and so are the k nearest.
        top = np.argpartition(bound, -k, axis=1)[:, -k:]
        least = np.take_along_axis(bound, top, axis=1) - 2 * (a.slack[rows, None] + b.slack[top])
        floor[rows] = least.min(axis=1)
        i, j, _ = _reaching(bound, rows, columns, floor)
        order = np.lexsort((j, -_exact(a, i, b, j), i))
        first = np.searchsorted(i, np.arange(rows.start, rows.stop))  # first pair of each query; sorting keeps it
        found[rows] = j[order][first[:, None] + np.arange(k)]
    return found


class _Images(NamedTuple):
    vectors: np.ndarray  # (n, D) float32
    labels: np.ndarray  # (n,) int64


class _Points(NamedTuple):
    given: np.ndarray  # (n, D) float32
    scale: float  # a power of two
    moved: np.ndarray  # (n, D) float32: the vectors minus a common centre, scaled
    offset: np.ndarray  # (n,) float32: half the squared norm of `moved`, minus the slack
    slack: np.ndarray  # (n,) float64


def _nearest_positive(queries, items, block):
    """(N,) closeness of each query to the nearest other item of its class, -inf if there is none."""
    positive = np.full(len(queries.labels), -np.inf)
    for members, group in _by_class(queries.labels, items.labels):
        x = _Images(queries.vectors[members], queries.labels[members])
        y = x if items is queries else _Images(items.vectors[group], items.labels[group])
        positive[members] = _best_closeness(x, y, block)
    return positive


def _best_closeness(queries, items, block):
    """The result of `_nearest_positive` for one of the groups of `_by_class`."""
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
        _, first = np.unique(copy[j] * len(best) + i, return_index=True)  # one of several copies of an item suffices
        improve(i[first], j[first])
    return best / a.scale**2


def _count_nearer(queries, items, positive, enough, block):
    """(N,) number of items of other classes at least as close as the nearest positive; exact up to `enough`."""
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
        # The others are computed pair by pair, copies of an item only once, until a query has enough.
        pairs, times = np.unique(copy[j[~sure]] * len(nearer) + i[~sure], return_counts=True)
        for part in _slices(len(pairs), 1024):
            j, i = np.divmod(pairs[part], len(nearer))
            wanted = nearer[i] < enough
            i, j = i[wanted], j[wanted]
            np.add.at(nearer, i, times[part][wanted] * (_exact(a, i, b, j) >= positive[i]))
        floor[rows][nearer[rows] >= enough] = np.inf
    return nearer


def _exact(a, i, b, j):
    """(n,) float64 closeness of the pairs a[i], b[j]; it depends on the two vectors only."""
    closeness = np.empty(len(i))
    for part in _slices(len(i), _PAIRS):
        difference = np.subtract(a.given[i[part]], b.given[j[part]], dtype=np.float64)
        closeness[part] = -0.5 * a.scale**2 * np.square(difference, out=difference).sum(axis=1)
    return closeness


def _points(x, y):
    """Centres x and y at the mean of y and scales them, for the float32 products. If y is x, so are the results."""
    centre = y.mean(axis=0, dtype=np.float64)
    scale = 2.0 ** -int(np.frexp(max(x.max(), -x.min(), y.max(), -y.min()))[1])  # below 1, so products cannot overflow
    a = _around(centre, scale, x)
    return a, (a if y is x else _around(centre, scale, y))


def _around(centre, scale, given):
    """Moves the centre to the origin, scales, and computes the slack of each vector.

    Summed in any order, D float32 products have an error of at most g |x| |y|, where g = D u / (1 - D u) and
    u = 2 ** -24 (Higham, "Accuracy and Stability of Numerical Algorithms", section 3.1), and
    |x| |y| <= |x|^2 / 2 + |y|^2 / 2. So the error of a pair is at most a sum of two terms, one per vector. Rounding the
    vectors, subtracting their norms and rounding the floor that the bound is compared with add less than 10 u to g; 16
    leaves room for errors in float64.
    """
    moved, half = np.empty(given.shape, np.float32), np.empty(len(given))
    for rows in _slices(len(given), 1024):
        exact = scale * np.subtract(given[rows], centre, dtype=np.float64)
        moved[rows] = exact
        half[rows] = 0.5 * np.square(exact, out=exact).sum(axis=1)
    roundings = (given.shape[1] + 16) * 2.0**-24
    slack = roundings / (1 - roundings) * (half + 2.0**-90)  # 2 ** -90 covers underflow in float32
    return _Points(given, scale, moved, (half - slack).astype(np.float32), slack)


def _bound(a, rows, b, columns):
    """Float32 upper bounds of the closeness of the pairs, which exceed it by at most 2 * (slack + slack)."""
    bound = a.moved[rows] @ b.moved[columns].T
    bound -= a.offset[rows, None]
    bound -= b.offset[columns]
    return bound


def _blocks(a, b, floor, block):
    """Yields (rows, columns, bound) for every block in which a row has a floor below inf; the caller raises the floors.

    If b is a, a block off the diagonal is computed once and yielded twice, the second time transposed.
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
    mask = bound >= floor[rows, None].astype(np.float32)  # float64 would take twice as long
    order = "C" if mask.flags.c_contiguous else "F"  # its memory order: a copy would cost more than all the rest
    i, j = np.unravel_index(np.flatnonzero(mask.ravel(order)), mask.shape, order)
    return i + rows.start, j + columns.start, bound[i, j]


def _first_copies(points):
    """(n,) for each vector the index of the first vector equal to it."""
    _, first, inverse = np.unique(points.slack, return_index=True, return_inverse=True)
    copy = first[inverse]
    later = np.flatnonzero(copy != np.arange(len(copy)))  # equal vectors have equal slack, but so may others
    for part in _slices(len(later), 1024):
        i = later[part]
        unequal = (points.given[i] != points.given[copy[i]]).any(axis=1)
        copy[i[unequal]] = i[unequal]
    return copy


def _by_class(query_labels, item_labels):
    """[(query indices, item indices)] of groups of classes: a large class, or several small ones."""
    classes, sizes = np.unique(item_labels, return_counts=True)
    group = (np.cumsum(sizes) - sizes) // _GROUP
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
    with np.errstate(over="ignore"):  # overflow is reported below
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
