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

_PAIRS = 256  # pairs settled at a time: few enough for their float64 differences to stay in the cache


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
        raise ValueError("ks must hold at least one K, each 1 or more, but is {}".format(ks))
    if block < 1:
        raise ValueError("block must be 1 or more, but is {}".format(block))
    if (gallery is None) != (gallery_labels is None):
        raise ValueError("gallery and gallery_labels go together: give both or neither")
    x = y = _checked("embeddings", embeddings)
    x_labels = y_labels = _checked_labels("labels", labels, x)
    if gallery is not None:
        y = _checked("gallery", gallery, columns=x.shape[1])
        y_labels = _checked_labels("gallery_labels", gallery_labels, y)
    positive = _nearest_positive(x, x_labels, y, y_labels, block)
    nearer = _count_nearer(x, x_labels, y, y_labels, positive, max(ks), block)
    return [float(np.mean((positive > -np.inf) & (nearer < k))) for k in ks]
