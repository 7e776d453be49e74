"""Measures beside Recall@K, and how sure they are.

MAP@R and R-precision are defined in Musgrave, Belongie and Lim, "A Metric Learning Reality Check" (ECCV 2020), section
3.3. R is the number of items of the query's class, the query left out.
"""

import re

import numpy as np

from cgd.retrieval.recall import nearest, nearest_others
from cgd.system.errors import InputError

PAIRS = 1 << 19  # queries x neighbours that are held at a time; `nearest` takes 400 bytes for each, and more
RESAMPLES, LEVEL = 10000, 0.95  # of the bootstrap


def parse(text):
    """An argparse type: "map@r,precision@10" -> ("map@r", "precision@10")."""
    names = tuple(text.lower().split(","))
    for name in names:
        if name not in ("map@r", "r-precision") and not re.fullmatch("precision@[1-9][0-9]{0,5}", name):
            raise InputError(f"--metrics {text}: expected map@r, r-precision or precision@K, as in precision@10")
    return names


def measure(names, embeddings, labels, gallery=None, gallery_labels=None):
    """{name: (N,) float64} of each query, from 0 to 1; the mean over the queries is the measure.

    names : of "map@r", "r-precision" and "precision@K" for any K
    embeddings, labels, gallery, gallery_labels : those of recall.recall_at_k

    With m(i) = 1 if neighbour i is of the query's class, else 0, and P(i) the mean of m(1) to m(i):
    precision@K is P(K); R-precision is P(R); MAP@R is the sum of m(i) P(i) over i = 1 to R, divided by R. As in
    recall_at_k, distances are exact, and ties are pessimistic: of items at the same distance, those of other classes
    come first. A query without a positive counts as 0, and neighbours beyond the last item are of no class.
    """
    labels = np.asarray(labels)
    y_labels = labels if gallery is None else np.asarray(gallery_labels)
    classes, sizes = np.unique(y_labels, return_counts=True)
    place = np.minimum(np.searchsorted(classes, labels), len(classes) - 1)
    positives = np.where(classes[place] == labels, sizes[place] - (gallery is None), 0)
    longest = max(_rank(name) or int(positives.max()) for name in names)
    longest = max(1, min(longest, len(y_labels)))
    values = {name: np.zeros(len(labels)) for name in names}
    step = max(1, PAIRS // longest)
    for start in range(0, len(labels), step):
        rows = np.arange(start, min(start + step, len(labels)))
        matches = _matches(embeddings, labels, rows, longest, gallery, y_labels)
        for name in names:
            values[name][rows] = _value(name, matches, positives[rows])
    return values


def _rank(name):
    """K of "precision@K"; 0 for the others, which look at as many neighbours as a query has positives."""
    return int(name.partition("@")[2]) if name.startswith("precision@") else 0


def _value(name, matches, positives):
    """(n,) a measure, from the matches (n, longest) in the order of their distance."""
    found = np.cumsum(matches, axis=1)
    ranks = np.arange(1, matches.shape[1] + 1)
    if _rank(name):
        return found[:, min(_rank(name), found.shape[1]) - 1] / _rank(name)
    counted = matches & (ranks <= positives[:, None])
    sums = (counted * found / ranks).sum(axis=1) if name == "map@r" else counted.sum(axis=1)
    return sums / np.maximum(positives, 1)


def _matches(embeddings, labels, rows, longest, gallery, y_labels):
    """(n, longest) bool: whether each of the nearest items is of the query's class; ties are pessimistic."""
    items, wanted = embeddings if gallery is None else gallery, longest + 1  # one more, to see whether the last is tied
    if gallery is None:
        found, distances = nearest_others(embeddings[rows], rows, wanted, items)
    else:
        found, distances = nearest(embeddings[rows], min(wanted, len(items)), items, return_distances=True)
    matches = y_labels[found] == labels[rows, None]
    matches = np.take_along_axis(matches, np.lexsort((matches, distances), axis=1), axis=1)
    if matches.shape[1] > longest:
        for place in np.flatnonzero(distances[:, longest - 1] == distances[:, longest]):
            row = rows[place]
            same = y_labels == labels[row]
            left_out = row if gallery is None else []
            matches[place, :longest] = _sorted_matches(embeddings[row], items, same, left_out)[:longest]
    missing = np.zeros((len(rows), max(0, longest - matches.shape[1])), bool)
    return np.hstack([matches[:, :longest], missing])


def _sorted_matches(query, items, same, left_out):
    """(M,) `same`, whether each item is of the query's class, in the order of distance, by sorting all items."""
    starts = range(0, len(items), 1024)
    blocks = [np.subtract(items[start : start + 1024], query, dtype=np.float64) for start in starts]
    distances = np.concatenate([np.square(block).sum(axis=1) for block in blocks])
    distances, same = np.delete(distances, left_out), np.delete(same, left_out)
    return same[np.lexsort((same, distances))]


def interval(hits, labels, others=None, seed=0):
    """(low, high): the bootstrap's 95 % interval of the share of hits; or of the difference to `others`, paired.

    hits, others : (N,) bool, whether each query is a hit, by one network and by another
    labels : (N,) integers, the queries' classes

    Classes are resampled with replacement, and all queries of a class with it: images of a class succeed and fail
    together, and a network is asked how it does on classes that it has not seen. So the interval is wider than one of
    single queries, which are not independent. Percentile method: Efron and Tibshirani, "An Introduction to the
    Bootstrap" (1993), chapter 13.
    """
    _, kind = np.unique(labels, return_inverse=True)
    gains = np.asarray(hits, float) if others is None else np.asarray(hits, float) - np.asarray(others, float)
    sums, counts = np.bincount(kind, gains), np.bincount(kind)
    random, shares = np.random.RandomState(seed), []
    for _ in range(RESAMPLES // 100):
        times = random.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=100)
        shares.append(times @ sums / (times @ counts))
    edge = 50 * (1 - LEVEL)
    return tuple(np.percentile(np.concatenate(shares), [edge, 100 - edge]).tolist())


def by_class(hits, labels, classes):
    """[{"id", "name", "images", "R@1"}] of each class, the worst first.

    hits : (N,) bool, whether each query is a hit at 1 · labels : (N,) identities, indices of `classes` (datasets.Class)
    """
    found = []
    for identity in np.unique(labels):
        own = np.asarray(hits)[labels == identity]
        entry = {"id": int(classes[identity].id), "name": classes[identity].name, "images": len(own)}
        found.append(dict(entry, **{"R@1": float(own.mean())}))
    return sorted(found, key=lambda entry: entry["R@1"])
