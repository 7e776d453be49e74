"""Writes queries and their nearest neighbours as one HTML file, which needs no network.

page.html, page.css and page.js are merged into it. Whatever comes from the data is JSON, which the script shows as
text: names of classes and files are never part of the HTML. A Content-Security-Policy allows only this script, this
style and the pictures, so that nothing can be loaded from elsewhere.
"""

import base64
import hashlib
import json
import os
import re
import sys
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cgd.gallery import pictures
from cgd.system import files, machine

MOST_QUERIES = 500  # unless more are asked for: each has pictures and maps
MAPPED = 3  # the first neighbours of each query that get similarity maps; more would take long to compute
MOST_POINTS = 2000  # of the scatter plot

# path : str, path of the picture · box : tuple (x, y, w, h) in pixels, or None
# label : str, its class; None if it is not known
Item = namedtuple("Item", "path box label")

# The nearest item of a query's class: item, index into the gallery · rank, 1 for the nearest of all · distance
Positive = namedtuple("Positive", "item rank distance")

# Two classes, by their labels · wrong : queries of either whose nearest item is of the other · queries : of both
Confusion = namedtuple("Confusion", "a b wrong queries")

# What the places of two pictures add to their similarity, which may be negative.
# name : str, such as "all" or "S" · value : float, the similarity, without what all pictures share
# query, neighbour : 2-D float arrays, one number per place of the feature map, from top left
SimilarityMap = namedtuple("SimilarityMap", "name value query neighbour")


def write(
    file,
    queries,
    gallery,
    neighbours,
    distances,
    *,
    title,
    facts=(),
    recalls=(),
    note="",
    positives=None,
    confused=(),
    vectors=None,
    link_images=False,
    maps=None,
    folder=None,
):
    """Writes a page with a row for each query: the query and its neighbours.

    file : path of the page
    queries, gallery : lists of Item; a neighbour counts as correct if its label is that of the query. Without labels
        the page has neither ticks and crosses nor filters
    neighbours, distances : (Q, k) indices into the gallery and their distances, nearest first
    title : str
    facts : list of (name, value), shown on top
    recalls : list of (name, float from 0 to 1), shown first
    note : str, which queries these are
    positives : list of Positive, or None without one, for each query; shown where the nearest neighbour is wrong
    confused : list of Confusion
    vectors : (query vectors (Q, D), gallery vectors (M, D)) for a scatter plot by PCA; only rows of pictures on the
        page are read, so that they may be memory-mapped
    link_images : refer to the files, by addresses relative to the page's folder, instead of storing thumbnails
    maps : function from a list of pairs (query Item, gallery Item) to an iterable with a list of SimilarityMap for each
        pair, in their order. It is called once, with the first MAPPED neighbours of each query and its nearest positive
    folder : that the gallery lies in, or None. Names are shown without it

    Pictures that cannot be read are shown as such, and counted in a warning. Raises InputError if `file` cannot be
    written.
    """
    neighbours, distances = np.asarray(neighbours), np.asarray(distances)
    items, rows = {}, []  # {Item: number on the page}, in order of appearance

    def number(item):
        return items.setdefault(item, len(items))

    for index, query in enumerate(queries):
        found = [gallery[each] for each in neighbours[index]]
        row = {
            "query": number(query),
            "items": [number(item) for item in found],
            "distances": [round(float(each), 6) for each in distances[index]],
            "positive": None,
        }
        positive = positives[index] if positives and found[0].label != query.label else None
        if positive:
            place = number(gallery[positive.item])
            if place not in row["items"]:
                row["items"].append(place)
                row["distances"].append(round(float(positive.distance), 6))
            row["positive"] = [row["items"].index(place), int(positive.rank)]
        rows.append(row)
    if maps is not None:
        _add_maps(rows, list(items), maps)
    labels = sorted({item.label for item in items if item.label is not None}, key=_by_number)
    label_numbers = {label: index for index, label in enumerate(labels)}
    views, thumbnails = _views(items, Path(file).parent, link_images)
    data = {
        "title": title,
        "note": note,
        "facts": [[name, str(value)] for name, value in facts],
        "recalls": [[name, round(value, 4)] for name, value in recalls],
        "labels": labels,
        "pictures": [
            [name, label_numbers.get(item.label, -1), *view]
            for name, item, view in zip(_names(items, folder), items, views)
        ],
        "k": neighbours.shape[1],
        "ranked": positives is not None,
        "rows": rows,
        "confused": [
            [label_numbers[a], label_numbers[b], wrong, count]
            for a, b, wrong, count in confused
            if a in label_numbers and b in label_numbers
        ],
        "scatter": None if vectors is None else _scatter(queries, gallery, neighbours, items, vectors),
    }
    # Bytes of a file name that are not UTF-8 become "?": in a string of JavaScript they would be half a character.
    with files.replacing(file) as part, open(part, "w", encoding="utf-8", errors="replace") as page:
        _merge(page, data, thumbnails, link_images)


def _merge(page, data, thumbnails, link_images):
    """Writes page.html to an open file, with its {{parts}} filled in."""
    source = {ending: _source("page." + ending) for ending in ("html", "css", "js")}
    parts = {
        "policy": "default-src 'none'; base-uri 'none'; form-action 'none'; "
        f"style-src {_hash(source['css'])}; script-src {_hash(source['js'])}; "
        "img-src data:" + (" file: 'self'" if link_images else ""),
        "style": source["css"],
        "script": source["js"],
        "data": json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),  # no </script>
        "thumbnails": "\n".join(thumbnails),
    }
    for index, piece in enumerate(re.split(r"{{(\w+)}}", source["html"])):
        page.write(parts[piece] if index % 2 else piece)


def _source(name):
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _hash(text):
    """A source expression of Content-Security-Policy: only an inline element with this text is allowed."""
    return "'sha256-{}'".format(base64.b64encode(hashlib.sha256(text.encode()).digest()).decode())


def _views(items, folder, link_images):
    """[[width, height] or [width, height, link]] of the items, and their thumbnails, which are empty with links."""
    view = partial(pictures.link, folder=folder) if link_images else pictures.thumbnail
    paths, boxes = [item.path for item in items], [item.box for item in items]
    with ThreadPoolExecutor(machine.usable_cores()) as pool:  # Pillow decodes and resizes without the GIL
        done = list(tqdm(pool.map(view, paths, boxes), total=len(items), desc="page", unit="image", leave=False))
    unreadable = [path for path, (_, content) in zip(paths, done) if not content]
    if unreadable:
        print(
            f"warning: {len(unreadable)} of {len(items)} pictures of the page cannot be read, first {unreadable[0]!r}",
            file=sys.stderr,
        )
    if link_images:
        return [[*size, content] for size, content in done], []
    return [list(size) for size, _ in done], [content for _, content in done]


def _names(items, folder=None):
    """The items' paths below a folder, so that the page does not tell where they lie.

    It is `folder`, or for items that are not in it, the one that is common to them.
    """
    paths = [os.path.abspath(item.path) for item in items]
    inside = [folder is not None and os.path.commonpath([folder, path]) == os.path.abspath(folder) for path in paths]
    others = [os.path.dirname(path) for path, within in zip(paths, inside) if not within]
    common = os.path.commonpath(others) if others else None
    return [os.path.relpath(path, folder if within else common) for path, within in zip(paths, inside)]


def _by_number(label):
    """A key that sorts "class 9" before "class 10"."""
    return [int(part) if index % 2 else part for index, part in enumerate(re.split(r"([0-9]+)", label))]


def _add_maps(rows, items, maps):
    """Adds "maps" to the rows: for each item of a row its maps; None without, as where a picture cannot be read."""
    places = []  # (row, index of the item in it)
    for row in rows:
        row["maps"] = [None] * len(row["items"])
        wanted = {*range(min(MAPPED, len(row["items"]))), *(row["positive"] or [])[:1]}
        places += [(row, index) for index in sorted(wanted)]
    pairs = [(items[row["query"]], items[row["items"][index]]) for row, index in places]
    for (row, index), found in zip(places, maps(pairs)):
        row["maps"][index] = [
            [each.name, round(float(each.value), 4), _quantised(each.query), _quantised(each.neighbour)]
            for each in found
        ] or None


def _quantised(values):
    """A map (h, w) as [h, w, scale, base64 of h * w bytes]; a byte, from -127 to 127, times the scale is the value."""
    values = np.asarray(values, np.float64)
    scale = float(np.abs(values).max()) / 127 or 1.0
    return [*values.shape, scale, base64.b64encode(np.rint(values / scale).astype(np.int8).tobytes()).decode()]


def _scatter(queries, gallery, neighbours, items, vectors):
    """The first two principal components of the vectors of pictures on the page: of all, or of every n-th.

    Returns {"points": [[picture, x, y]], "explained": [share of the variance, for x and y]}.
    """
    rows = {}  # {number of the picture: its vector}
    for index, query in enumerate(queries):
        rows.setdefault(items[query], (0, index))
    for index in dict.fromkeys(neighbours.ravel().tolist()):
        rows.setdefault(items[gallery[index]], (1, index))
    every = -(-len(rows) // MOST_POINTS)  # evenly, for pictures are often in the order of their classes
    chosen = list(rows.items())[::every]
    points, explained = principal_components(np.stack([vectors[of][index] for _, (of, index) in chosen]))
    return {
        "points": [[picture, *map(float, point)] for (picture, _), point in zip(chosen, points.round(4))],
        "explained": [round(float(share), 4) for share in explained],
    }


def principal_components(vectors):
    """The first two principal components of vectors (N, D): (N, 2) coordinates, (2,) shares of the variance."""
    centred = vectors - vectors.mean(axis=0, dtype=np.float64)
    _, values, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:2] * np.sign(axes[:2, np.abs(axes[:2]).argmax(axis=1)].diagonal())[:, None]  # a sign is arbitrary
    points, shares = np.zeros((len(vectors), 2)), np.zeros(2)  # there may be one component only
    points[:, : len(axes)] = centred @ axes.T
    shares[: len(axes)] = values[:2] ** 2 / max(np.sum(values**2), np.finfo(float).tiny)
    return points, shares
