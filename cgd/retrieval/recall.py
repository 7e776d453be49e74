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

import numpy as np

_BLOCK = 2048  # rows and columns of the matrix products of `nearest`
_CACHED = 128  # vectors prepared at a time, so that they stay in the cache
_PAIRS = 64  # pairs computed at a time in float64; small enough for their differences to stay in the cache
_GROUP = 128  # items of classes that share a matrix product; products of single small classes are slow
_LOWEST = float(np.finfo(np.float32).min)  # below every bound, but above -inf


def recall_at_k(embeddings, labels, ks, gallery=None, gallery_labels=None, *, block=_BLOCK):
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
    nearer = count_nearer(embeddings, labels, max(ks), gallery, gallery_labels, block=block)
    return [float(np.mean(nearer < k)) for k in ks]


def count_nearer(embeddings, labels, enough, gallery=None, gallery_labels=None, *, block=_BLOCK):
    """(N,) for each query, the items of other classes that are at least as close as its nearest positive.

    It is counted up to `enough`, which also stands for a query without a positive. So the query is a hit at K if and
    only if this is below K, for K up to `enough`. The other arguments, and errors, are those of `recall_at_k`.
    """
    if block < 1:
        raise ValueError(f"block must be 1 or more, but is {block}")
    if (gallery is None) != (gallery_labels is None):
        raise ValueError("gallery and gallery_labels go together: give both or neither")
    x, y, scale = _queries_and_items(embeddings, gallery)
    x_labels = y_labels = _labels("labels", labels, len(x))
    if gallery is not None:
        y_labels = _labels("gallery_labels", gallery_labels, len(y))
    positive = np.full(len(x), -np.inf)  # closeness of the nearest positive
    for i, j in _by_class(x_labels, y_labels):
        members = x[i]
        a, b = _points(members, members if y is x else y[j], scale)
        positive[i] = _k_nearest(a, b, 1, block, (x_labels[i], y_labels[j]))[1][:, 0]
    nearer = _count_nearer(*_points(x, y, scale), (x_labels, y_labels), positive, enough, block)
    return np.where(positive > -np.inf, np.minimum(nearer, enough), enough)


def nearest(embeddings, k, gallery=None, *, return_distances=False):
    """The k nearest items of each query, nearest first; items at the same distance are in the order of their index.

    embeddings : (N, D) array, the queries; converted to float32
    k : number of neighbours, from 1 to M, or to N - 1 without a gallery
    gallery : (M, D) array, the items to search. Without it, each query is searched among all the others
    return_distances : whether to return the distances too

    Returns an (N, k) array of indices into the gallery, or into the embeddings; with `return_distances` a tuple of it
    and the (N, k) float64 distances. Distances are Euclidean and exact, as in `recall_at_k`.

    Memory: a copy of the queries, blocks of 2048 x D and 2048 x 2048 values, about 400 bytes x k per query (many times
    as much if most vectors are equal), and 12 bytes per item. A gallery of float32 or float16 is not copied but read
    twice, block by block, so that it may be a np.memmap of a file that is larger than the memory.

    Raises ValueError for empty input, k out of range, mismatched shapes, and vectors that are not finite in float32.
    """
    k = index(k)
    x, y, scale = _queries_and_items(embeddings, gallery)
    most = len(y) - (gallery is None)
    if not 1 <= k <= most:
        raise ValueError(f"k must be from 1 to {most}, the number of items to search, but is {k}")
    found, closeness = _k_nearest(*_points(x, y, scale), k, _BLOCK)
    return (found, np.sqrt(-2 * closeness) / scale) if return_distances else found


def nearest_others(queries, own, k, items):
    """As `nearest` with distances, but without item own[i] for query i, which is a copy of it.

    queries : (N, D) · own : (N,) indices of items · items : (M, D), two or more

    Returns indices and distances, (N, min(k, M - 1)) both.
    """
    wanted = min(k + 1, len(items))
    found, distances = nearest(queries, wanted, items, return_distances=True)
    other = found != np.asarray(own)[:, None]
    other[other.all(axis=1), -1] = False  # the query has so many copies that it is not among them itself
    shape = len(found), wanted - 1
    return found[other].reshape(shape), distances[other].reshape(shape)


class _Points:
    """Vectors to be multiplied in float32: scaled, minus a common centre.

    given : (n, D) float32 or float16
    offset : (n,) float32, half the squared norm of the moved vector, minus its slack
    slack : (n,) float64

    Summed in any order, D float32 products have an error of at most g |x| |y|, where g = D u / (1 - D u) and
    u = 2 ** -24 (Higham, "Accuracy and Stability of Numerical Algorithms", section 3.1), and
    |x| |y| <= |x|^2 / 2 + |y|^2 / 2. So the error of a pair is at most a sum of two terms, one per vector. Rounding the
    vectors and their squares, subtracting their norms and rounding the floor that the bound is compared with add less
    than 14 u to g; 20 leaves room for errors in float64.
    """

    def __init__(self, given, scale, centre):
        self.given, self.scale, self.centre = given, scale, centre
        self.offset, self.slack = np.empty(len(given), np.float32), np.empty(len(given))

    def move(self, rows):
        """(n, D) float32 moved vectors of these rows; computes their offset and slack too."""
        moved, half = np.empty(self.given[rows].shape, np.float32), np.empty(rows.stop - rows.start)
        for part in _slices(len(half), _CACHED):
            moved[part] = self.given[rows][part]
            moved[part] *= np.float32(self.scale)
            moved[part] -= self.centre
            half[part] = 0.5 * np.square(moved[part]).sum(axis=1, dtype=np.float64)
        roundings = (moved.shape[1] + 20) * 2.0**-24
        self.slack[rows] = roundings / (1 - roundings) * (half + 2.0**-90)  # 2 ** -90 covers underflow in float32
        self.offset[rows] = half - self.slack[rows]
        return moved


def _points(x, y, scale):
    """The `_Points` of x and y, around the mean of a sample of y. If y is x, so are the results."""
    sample = y[:: -(-len(y) // _BLOCK)]
    centre = (scale * sample.mean(axis=0, dtype=np.float64)).astype(np.float32)
    a = _Points(x, scale, centre)
    return a, (a if y is x else _Points(y, scale, centre))


def _k_nearest(a, b, k, block, labels=None):
    """(N, k) indices of the nearest items and their closeness, nearest first; 0 and -inf where there are fewer than k.

    labels : (N,) and (M,), the classes of queries and items, if only items of the query's class count
    """
    floor = np.full(len(a.given), _LOWEST)  # closeness that the k nearest items of each query reach
    surplus = None  # (M,) bool, found only if many items are close to each other
    candidates = {}  # by block of queries: (i, j, bound) of the pairs that may be among the k nearest
    for rows, columns, bound in _blocks(a, b, floor, block):
        if labels is not None:
            bound[labels[0][rows, None] != labels[1][columns]] = -np.inf
        mask = _reaching(bound, rows, floor)
        if np.count_nonzero(mask) > 4 * k * len(mask):  # as in the first block of these queries
            _raise_floor(a, rows, b, columns, bound, k, floor)
            mask = _reaching(bound, rows, floor)
        if surplus is not None:
            mask &= ~surplus[columns]
        pairs = _pairs(mask, rows, columns, bound)
        if rows.start in candidates:
            pairs = tuple(map(np.concatenate, zip(candidates[rows.start], pairs)))
        if len(pairs[0]) > 16 * k * len(mask):
            pairs = _prune(a, b, k, pairs, floor)
            if len(pairs[0]) > 8 * k * len(mask):  # too close to each other for the products
                if surplus is None:
                    surplus = _surplus_copies(b.given, k, labels)
                keep = ~surplus[pairs[1]]
                pairs = _settle(a, b, k, tuple(values[keep] for values in pairs), floor)[:3]
        candidates[rows.start] = pairs
    found, closeness = np.zeros((len(floor), k), np.intp), np.full((len(floor), k), -np.inf)
    for pairs in candidates.values():
        i, j, _, exact, rank = _settle(a, b, k, _prune(a, b, k, pairs, floor), floor)
        found[i, rank], closeness[i, rank] = j, exact
    return found, closeness


def _raise_floor(a, rows, b, columns, bound, k, floor):
    """Raises the floors to the k-th greatest bound of a block, or a little less, minus the error of the bounds."""
    groups = _slices(bound.shape[1], bound.shape[1] // (2 * k))  # the block has more than 4 * k columns
    greatest = np.stack([bound[:, group].max(axis=1) for group in groups], axis=1)
    least = np.partition(greatest, -k, axis=1)[:, -k] - 2 * (a.slack[rows] + b.slack[columns].max())
    floor[rows] = np.maximum(floor[rows], least)


def _prune(a, b, k, pairs, floor):
    """Raises the floors to the k-th greatest lower bound of the pairs, and returns the pairs that reach them."""
    i, j, bound = pairs
    least = bound - 2 * (a.slack[i] + b.slack[j])
    order, rank = _ranked(i, np.argsort(-least))
    order = order[rank == k - 1]
    floor[i[order]] = np.maximum(floor[i[order]], least[order])
    keep = bound >= floor[i].astype(np.float32)
    return i[keep], j[keep], bound[keep]


def _settle(a, b, k, pairs, floor):
    """The k nearest pairs of each query (i, j, bound, exact closeness, rank), and raises the floors to the k-th."""
    i, j, bound = pairs
    exact = _exact(a, i, b, j)
    order, rank = _ranked(i, np.lexsort((j, -exact)))
    order, rank = order[rank < k], rank[rank < k]
    i, j, bound, exact = i[order], j[order], bound[order], exact[order]
    floor[i[rank == k - 1]] = exact[rank == k - 1]
    return i, j, bound, exact, rank


def _ranked(i, order):
    """The order of pairs, sorted by query first; and the rank of each pair among those of its query."""
    start = i.min() if len(i) else 0
    count = np.bincount(i - start)
    i = i[order] - start
    order = order[np.argsort(i.astype(np.min_scalar_type(len(count))), kind="stable")]  # small integers sort fast
    return order, np.arange(len(i)) - np.repeat(np.cumsum(count) - count, count)


def _count_nearer(a, b, labels, positive, enough, block):
    """(N,) number of items of other classes at least as close as the nearest positive; exact up to `enough`."""
    copy = _first_copies(b.given)
    floor = np.where(positive > -np.inf, positive, np.inf)
    nearer = np.zeros(len(floor), np.intp)
    for rows, columns, bound in _blocks(a, b, floor, block):
        mask = _reaching(bound, rows, floor)
        if np.count_nonzero(mask) > mask.size // 64:  # closer for sure, so of another class: counted without a list
            sure = bound > (floor[rows] + 2 * (a.slack[rows] + b.slack[columns].max()))[:, None].astype(np.float32)
            nearer[rows] += np.count_nonzero(sure, axis=1)
            mask &= ~sure
        i, j, value = _pairs(mask, rows, columns, bound)
        other = labels[0][i] != labels[1][j]
        i, j, value = i[other], j[other], value[other]
        sure = value - 2 * (a.slack[i] + b.slack[j]) >= floor[i]
        nearer[rows] += np.bincount(i[sure] - rows.start, minlength=len(bound))
        # The others are computed pair by pair, copies of an item only once, until a query has enough.
        distinct, times = np.unique(copy[j[~sure]] * len(nearer) + i[~sure], return_counts=True)
        for part in _slices(len(distinct), 1024):
            j, i = np.divmod(distinct[part], len(nearer))
            wanted = nearer[i] < enough
            i, j = i[wanted], j[wanted]
            np.add.at(nearer, i, times[part][wanted] * (_exact(a, i, b, j) >= floor[i]))
        floor[rows][nearer[rows] >= enough] = np.inf
    return nearer


def _exact(a, i, b, j):
    """(n,) float64 closeness of the pairs a[i], b[j]; it depends on the two vectors only."""
    closeness = np.empty(len(i))
    for part in _slices(len(i), _PAIRS):
        difference = np.subtract(a.given[i[part]], b.given[j[part]], dtype=np.float64)
        closeness[part] = -0.5 * a.scale**2 * np.square(difference, out=difference).sum(axis=1)
    return closeness


def _blocks(a, b, floor, block):
    """Yields (rows, columns, bound) for every block in which a row has a floor below inf; the caller raises the floors.

    If b is a, a block off the diagonal is computed once and yielded twice, the second time transposed, and the bound of
    an item with itself is -inf.
    """
    queries = np.empty(a.given.shape, np.float32)
    for rows in _slices(len(queries), block):
        queries[rows] = a.move(rows)
    buffer = np.empty(min(block, len(queries)) * min(block, len(b.given)), np.float32)  # new memory is slow
    for columns in _slices(len(b.given), block):
        items = queries[columns] if b is a else b.move(columns)
        for rows in _slices(columns.stop if b is a else len(queries), block):
            mirrored = b is a and rows != columns and (floor[columns] < np.inf).any()
            if mirrored or (floor[rows] < np.inf).any():
                bound = _bound(queries[rows], a.offset[rows], items, b.offset[columns], buffer)
                if b is a and rows == columns:
                    np.fill_diagonal(bound, -np.inf)
                yield rows, columns, bound
                if mirrored:
                    yield columns, rows, bound.T


def _bound(x, x_offset, y, y_offset, buffer):
    """Float32 upper bounds of the closeness of the pairs, which exceed it by at most 2 * (slack + slack)."""
    transposed = buffer[: len(x) * len(y)].reshape(len(y), len(x))
    bound = np.matmul(y, x.T, out=transposed).T  # OpenBLAS is up to a tenth faster than with x @ y.T
    bound -= x_offset[:, None]
    bound -= y_offset
    return bound


def _reaching(bound, rows, floor):
    """Whether the bound of each pair of a block is at or above the floor of its row."""
    return bound >= floor[rows, None].astype(np.float32)  # float64 would take twice as long


def _pairs(mask, rows, columns, bound):
    """(i, j, bound) of the pairs of a block where the mask is true."""
    order = "C" if mask.flags.c_contiguous else "F"  # its memory order: a copy would cost more than all the rest
    i, j = np.unravel_index(np.flatnonzero(mask.ravel(order)), mask.shape, order)
    return i + rows.start, j + columns.start, bound[i, j]


def _first_copies(vectors):
    """(n,) for each vector the index of the first vector equal to it."""
    _, first, inverse = np.unique(vectors.sum(axis=1, dtype=np.float64), return_index=True, return_inverse=True)
    copy = first[inverse]
    later = np.flatnonzero(copy != np.arange(len(copy)))  # equal vectors have equal sums, but so may others
    for part in _slices(len(later), 1024):
        i = later[part]
        unequal = (vectors[i] != vectors[copy[i]]).any(axis=1)
        copy[i[unequal]] = i[unequal]
    return copy


def _surplus_copies(vectors, k, labels):
    """(n,) bool: more than k of the items before it are equal to it, and of its class if there are labels.

    Such an item is no neighbour of any query: these are as near and come first, and one of them at most is the query.
    """
    kind = _first_copies(vectors)
    if labels is not None:
        kind = kind + len(kind) * np.unique(labels[1], return_inverse=True)[1]
        kind = np.unique(kind, return_inverse=True)[1]
    order, rank = _ranked(kind, np.arange(len(kind)))
    surplus = np.empty(len(kind), bool)
    surplus[order] = rank > k
    return surplus


def _by_class(query_labels, item_labels):
    """[(query indices, item indices)] of groups of classes: a large class, or several small ones."""
    classes, sizes = np.unique(item_labels, return_counts=True)
    group = (np.cumsum(sizes) - sizes) // _GROUP
    group_of_query = group[np.minimum(np.searchsorted(classes, query_labels), len(classes) - 1)]
    group_of_item = group[np.searchsorted(classes, item_labels)]
    return [
        (np.flatnonzero(group_of_query == g), np.flatnonzero(group_of_item == g)) for g in np.unique(group_of_query)
    ]


def _slices(stop, size):
    return [slice(at, min(at + size, stop)) for at in range(0, stop, size)]


def _queries_and_items(embeddings, gallery):
    """The vectors of both (the same array if there is no gallery), and a power of two that scales them.

    Scaled values are below 4, so float32 products cannot overflow; the limits keep the scale itself in float32.
    """
    x, x_size = _vectors("embeddings", embeddings)
    y, y_size = (x, x_size) if gallery is None else _vectors("gallery", gallery)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"embeddings have {x.shape[1]} columns, but the gallery has {y.shape[1]}")
    return x, y, 2.0 ** -int(np.clip(np.frexp(max(x_size, y_size))[1], -126, 126))


def _vectors(name, vectors):
    """The vectors in float32 or float16, and their greatest absolute value."""
    vectors = np.asarray(vectors).view()  # a new object: only without a gallery are queries and items the same
    if vectors.dtype not in (np.float32, np.float16):
        with np.errstate(over="ignore"):  # overflow is reported below
            vectors = vectors.astype(np.float32)
    if vectors.ndim != 2 or 0 in vectors.shape:
        raise ValueError(f"{name} must have rows and columns, but has the shape {vectors.shape}")
    size = 0.0
    for rows in _slices(len(vectors), _CACHED):
        bits = vectors[rows].view(f"u{vectors.itemsize}")  # without the sign, in the order of the absolute values
        sizes = (bits & np.iinfo(bits.dtype).max // 2).max(axis=1).view(vectors.dtype)
        if not np.isfinite(sizes).all():
            raise ValueError(f"{name}: row {rows.start + np.isfinite(sizes).argmin()} is not finite in float32")
        size = max(size, float(sizes.max()))
    return vectors, size


def _labels(name, labels, count):
    labels = np.asarray(labels)
    if labels.shape != (count,):
        raise ValueError(f"{name} must have the shape ({count},), but has {labels.shape}")
    if labels.dtype.kind not in "iu":
        raise ValueError(f"{name} must be integers, but are {labels.dtype}")
    return labels.astype(np.int64)
