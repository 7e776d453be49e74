"""The page of an evaluation: test.py --html."""

from collections import Counter

import numpy as np

from cgd.gallery import page
from cgd.retrieval.recall import nearest
from cgd.system.errors import InputError

NEIGHBOURS = 10  # shown for each query
MOST_PAIRS = 20  # of confused classes
_BLOCK = 2048  # items of the gallery whose distances are computed at a time


def write(file, result, dataset, facts, shown=500, link_images=False, maps=None):
    """Writes a page of queries of the test split, with their neighbours, nearest positives and confused classes.

    file : path of the page
    result : evaluation.Result
    dataset : datasets.Dataset that was evaluated
    facts : list of (name, value)
    shown : the most queries on the page; an even sample of the classes if there are more
    link_images, maps : as in page.write

    Raises InputError if there is nothing to retrieve, and as page.write does.
    """
    queries, searched = result.queries, result.gallery or result.queries
    count, k = len(queries.records), min(NEIGHBOURS, len(searched.records) - (result.gallery is None))
    if k < 1:
        raise InputError("--html: only one test image, so that there is nothing to retrieve")
    gallery = searched.embeddings if result.gallery else None
    found, distances = nearest(queries.embeddings, k, gallery, return_distances=True)
    found, distances = wrong_first(found, distances, queries.identities, searched.identities)
    add_wrong(found, distances, result)
    labels = labels_of(dataset.classes)
    items, gallery_items = (
        [page.Item(record.path, record.box, labels[record.identity]) for record in part.records]
        for part in (queries, searched)
    )
    rows = even_sample(queries.identities, shown)
    positives = nearest_positives(
        queries.embeddings[rows],
        queries.identities[rows],
        searched.embeddings,
        searched.identities,
        rows if result.gallery is None else None,
    )
    confused = confusions(queries.identities, searched.identities[found[:, 0]])
    if len(rows) < count:
        note = f"{len(rows):,} of {count:,} queries, an even sample of the classes. R@K and confused classes: of all."
    else:
        note = f"All {count:,} queries."
    page.write(
        file,
        [items[row] for row in rows],
        gallery_items,
        found[rows],
        distances[rows],
        title=f"Retrieval: {dataset.name}",
        facts=facts,
        recalls=[(f"R@{rank}", recall) for rank, recall in zip(dataset.ranks, result.recalls)],
        note=note,
        positives=positives,
        confused=[page.Confusion(labels[a], labels[b], *counts) for a, b, *counts in confused],
        vectors=(queries.embeddings[rows], searched.embeddings),
        link_images=link_images,
        maps=maps,
    )


def wrong_first(found, distances, identities, gallery_identities):
    """Neighbours (N, k) and their distances, those of other classes first among equal distances, as R@K counts them."""
    right = gallery_identities[found] == identities[:, None]
    order = np.lexsort((right, distances), axis=1)
    return np.take_along_axis(found, order, axis=1), np.take_along_axis(distances, order, axis=1)


def add_wrong(found, distances, result):
    """Puts an item of another class first where R@1 counts one as nearer that is not among the neighbours (N, k).

    Of many items at the same distance, `nearest` returns those of the lowest index. Changes both arrays in place.
    """
    queries, searched = result.queries, result.gallery or result.queries
    missed = (result.nearer > 0) & (searched.identities[found[:, 0]] == queries.identities)
    for row in np.flatnonzero(missed):
        closeness = searched.embeddings @ queries.embeddings[row]
        closeness[searched.identities == queries.identities[row]] = -np.inf
        found[row] = np.append(closeness.argmax(), found[row, :-1])
        distances[row] = np.append(distances[row, 0], distances[row, :-1])


def labels_of(classes):
    """A label for each Class: its name; with its id, if it has no name or shares it with another."""
    several = {name for name, times in Counter(each.name for each in classes).items() if times > 1}
    return [
        f"{each.name} ({each.id})" if each.name in several and each.name else each.name or f"class {each.id}"
        for each in classes
    ]


def even_sample(identities, count, seed=0):
    """Indices of `count` queries, sorted: random ones, but as many of each class, give or take one, as there are."""
    random = np.random.RandomState(seed)
    order = random.permutation(len(identities))
    order = order[np.argsort(identities[order], kind="stable")]
    _, start, inverse = np.unique(identities[order], return_index=True, return_inverse=True)
    turn = np.arange(len(order)) - start[inverse]  # the place of each query in its class
    return np.sort(order[np.lexsort((random.permutation(len(start))[inverse], turn))][:count])


def confusions(identities, retrieved, most=MOST_PAIRS):
    """Pairs of classes whose queries have a nearest item of the other class, most frequent first.

    identities, retrieved : (N,) classes of the queries, and of their nearest items

    Returns a list of (a, b, such queries, queries of both classes).
    """
    wrong = identities != retrieved
    pairs = np.sort(np.stack([identities, retrieved], axis=1)[wrong], axis=1)
    pairs, times = np.unique(pairs, axis=0, return_counts=True)
    order = np.argsort(-times, kind="stable")[:most]
    return [(a, b, int(times[row]), int(np.isin(identities, (a, b)).sum())) for row, (a, b) in zip(order, pairs[order])]


def nearest_positives(embeddings, identities, gallery, gallery_identities, itself=None):
    """The page.Positive of each query; None for a query whose class has no other item.

    embeddings, identities : (Q, D) and (Q,), the queries
    gallery, gallery_identities : (M, D) and (M,), the items
    itself : (Q,) indices of the queries in the gallery, if they are part of it; a query does not retrieve itself

    Its rank is 1 + the number of items of other classes that are as close, as in `recall_at_k`. In float64, from the
    vectors' mean; distances that differ by rounding only count as equal.
    """
    centre = gallery.mean(axis=0, dtype=np.float64)  # after a collapse, distances are tiny beside the vectors
    x = embeddings - centre
    best, least = np.full(len(x), -1), np.full(len(x), -np.inf)  # the nearest positive and its squared distance
    for query, identity in enumerate(identities):
        members = np.flatnonzero(gallery_identities == identity)
        if itself is not None:
            members = members[members != itself[query]]
        if len(members):
            squares = np.square(gallery[members] - centre - x[query]).sum(axis=1)
            best[query], least[query] = members[squares.argmin()], squares.min()
    nearer = np.zeros(len(x), np.intp)
    for start in range(0, len(gallery), _BLOCK):
        y = gallery[start : start + _BLOCK] - centre
        lengths = np.square(x).sum(axis=1)[:, None] + np.square(y).sum(axis=1)
        squares = lengths - 2 * (x @ y.T)
        other = identities[:, None] != gallery_identities[start : start + _BLOCK]
        nearer += np.count_nonzero(other & (squares <= least[:, None] + 1e-12 * lengths), axis=1)
    return [
        page.Positive(int(item), 1 + int(count), float(np.sqrt(square))) if item >= 0 else None
        for item, count, square in zip(best, nearer, least)
    ]
