"""Finds the pictures of an index that are most similar to a picture.

    python -m cgd.search photos-index photo.jpg
    python -m cgd.search photos-index queries/ -k 20 --json > found.jsonl
    python -m cgd.search photos-index --like 17 --html found.html
    python -m cgd.search photos-index --export photos.faiss

The index is one that python -m cgd.describe made. The search is exact. For each query, its nearest pictures are
printed, nearest first: rank, distance (Euclidean, between vectors of length 1: from 0 to 2), number in the index, path.
With --html, a page for the browser shows them, with the places that make them alike (docs/explain.md): those of the
first 500 queries.
With --json, a line is {"query": path, "neighbours": [{"item", "distance", "path", "label"}, ...]}.

--export writes the descriptors for another engine: FILE.npy, (N, dim) float32; or FILE.faiss, an IndexFlatIP of faiss.
Rows are numbered as the lines of items.jsonl, from 0.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence

import numpy as np

from cgd.data import flags, pictures
from cgd.gallery import page
from cgd.network import descriptions
from cgd.retrieval import index
from cgd.retrieval.recall import nearest, nearest_others
from cgd.system import errors, files
from cgd.system.errors import InputError
from cgd.system.packages import optional_package

SAMPLE = 10000  # vectors whose mean is what all pictures have in common


def arguments():
    parser = errors.Parser(
        prog="python -m cgd.search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("index", metavar="INDEX", help="folder that cgd.describe wrote")
    add("queries", nargs="*", metavar="QUERY", help="a picture, or a folder of pictures")
    help_ = "crop of a query; give it once for each picture (default: whole pictures)"
    add("--box", type=flags.box, action="append", metavar="X,Y,W,H", help=help_)
    add("--like", action="append", type=flags.whole(0), metavar="N", help="search for picture N of the index")
    add("-k", type=flags.whole(1), default=10, metavar="K", help="pictures found for each query (default: 10)")
    add("--json", action="store_true", help="print a line of JSON for each query")
    add("--html", metavar="FILE.html", help="write a page of the queries and what is found")
    help_ = "write all descriptors instead of searching: FILE.npy or FILE.faiss"
    add("--export", metavar="FILE", help=help_)
    add = parser.add_argument_group("device").add_argument
    help_ = "the network that described the index (default: where it was then)"
    add("--pretrained-model", dest="prefix", metavar="PREFIX", help=help_)
    flags.add_device_flags(add)
    flags.add_workers_flag(add)
    options = parser.parse_intermixed_args()  # flags may stand before the queries
    if sum(map(bool, (options.queries, options.like, options.export))) != 1:
        raise InputError("give what to search for: either pictures, or --like, or --export")
    if options.box and (len(options.box) != len(options.queries) or any(map(os.path.isdir, options.queries))):
        raise InputError(
            f"--box: {len(options.box)} given for {len(options.queries)} queries; expected one for each picture"
        )
    if options.export:
        if options.html or options.json:
            raise InputError("--export: writes descriptors and searches nothing; leave --html and --json out")
        own = os.path.join(options.index, index.VECTORS)
        files.check_output("--export", options.export, (".npy", ".faiss"), [own])
    if options.html:
        files.check_output("--html", options.html, (".html",))
    return options


def find_queries(words, boxes=None):
    """[Picture] with absolute paths, of pictures and folders. boxes : the crop of each, if all are pictures."""
    found = []
    for word, box in zip(words, boxes or [None] * len(words)):
        if os.path.isdir(word):
            root, some = pictures.find(word)
            found += [picture._replace(path=os.path.join(root, picture.path)) for picture in some]
        elif not os.path.exists(word):
            raise InputError(f"{word}: no such file; expected a picture or a folder of pictures")
        else:
            found.append(pictures.Picture(os.path.abspath(word), 0, 0, box, None))
    return found


def network_of(options, facts, how="by --pretrained-model"):
    """The name of the network that described the index, where it is now. Raises InputError if it is not there.

    how : how the command takes a network, for the message
    """
    name = options.prefix or facts["name"]
    try:
        description = descriptions.read_with_dim(name)
    except InputError as error:
        raise InputError(f"{error}; if the network was moved, give its new place {how}")
    if any(facts[key] != value for key, value in index.facts_of(name, description).items() if key != "name"):
        hint = f"give that one {how}, or describe the pictures with this one into another folder"
        raise InputError(f"{name}: is not the network that described {options.index}; {hint}")
    return name


def describe_queries(options, facts, queries):
    """The queries that could be read, and their descriptors (n, dim), by the network of the index.

    They have the precision of the index, so that a picture of it finds itself.
    """
    options.prefix = network_of(options, facts)
    options.dtype = "bfloat16" if facts["dtype"] == "bfloat16" else "float32"
    options.runtime = descriptions.choose_runtime(options.prefix, options.runtime, options.dtype)
    if descriptions.read(options.prefix)["cropped"] and not options.box:
        errors.say("note: this network was trained on cropped images; --box crops a query")
    # One block for all, as in evaluation.Extractor.
    numbers, vectors = [], np.empty((len(queries), facts["dim"]), np.float32)

    # Not before: it imports MXNet, which takes far longer than all the above.
    from cgd.retrieval import describer

    for some, found in describer.stream(options, "", queries):
        vectors[len(numbers) : len(numbers) + len(some)] = found
        numbers.extend(some)
    if not numbers:
        raise InputError(f"none of the {len(queries)} queries could be read")
    found = vectors[: len(numbers)].astype(facts["stored"]).astype(np.float32)
    return [queries[number] for number in numbers], found


def like(options, items, vectors):
    """The pictures of --like as queries, and their vectors."""
    last = len(items) - 1
    if not last:
        raise InputError(f"--like: {options.index} has one picture only; there is nothing to find")
    for number in options.like:
        if number > last:
            raise InputError(f"--like {number}: {options.index} has the pictures 0 to {last}")
    return [items[number] for number in options.like], np.asarray(vectors[options.like], np.float32)


def neighbours_of(found, distances, items, root):
    """The neighbours of one query as dicts, as --json prints them."""
    return [
        {
            "item": int(number),
            "distance": float(distance),
            "path": os.path.join(root, items[number].path),
            "label": items[number].label,
        }
        for number, distance in zip(found, distances)
    ]


def text_of(neighbours):
    """A line for each neighbour: rank, distance, number in the index, path."""
    lines = ("{:4d}  {distance:.4f}  {item:7d}  {path}".format(rank, **n) for rank, n in enumerate(neighbours, 1))
    return "\n".join(lines)


class PageItems(Sequence):
    """The items of an index as those of a page, made when they are asked for."""

    def __init__(self, items, root):
        self.items, self.root = items, root

    def __len__(self):
        return len(self.items)

    def __getitem__(self, number):
        item = self.items[number]
        return page.Item(os.path.join(self.root, item.path), item.crop, item.label)


def write_page(options, facts, items, vectors, queries, described, found, distances):
    """Writes the page of --html."""
    count, shown = len(queries), slice(page.MOST_QUERIES)
    about = [
        ("index", options.index),
        ("pictures", f"{len(items):,}"),
        ("described by", os.path.basename(facts["name"])),
    ]
    page.write(
        options.html,
        [page.Item(query.path, query.crop, query.label) for query in queries[shown]],
        PageItems(items, facts["folder"]),
        found[shown],
        distances[shown],
        title="Search",
        facts=about,
        note=f"The first {page.MOST_QUERIES:,} of {count:,} queries." if count > page.MOST_QUERIES else "",
        vectors=(described, vectors) if count > 1 else None,  # a plot of one query and what it finds says little
        maps=similarity_maps(options, facts, vectors),
        folder=facts["folder"],
    )
    print(f"written: {options.html}", file=sys.stderr)


def similarity_maps(options, facts, vectors):
    """The maps of the page, by the network of the index; None, with a note, if it is not there or has none."""
    from cgd.gallery import similarity
    from cgd.network import runtimes

    try:
        name = network_of(options, facts)
        if descriptions.is_onnx(name):
            raise InputError(f"{name}: is no checkpoint")
        checkpoint, ctx, _ = runtimes.open_network(name, "mxnet", options.gpu)
        return similarity.maps_of(checkpoint, ctx, common_of(vectors))
    except InputError as error:
        print(f"note: the page has no similarity maps: {error}", file=sys.stderr)
        return None


def common_of(vectors):
    """What all pictures of an index have in common: the mean (dim,) of its vectors, or of an even sample."""
    return np.mean(vectors[:: 1 + len(vectors) // SAMPLE], axis=0, dtype=np.float64)


def export(file, vectors):
    """Writes the vectors (N, dim) as FILE.npy or FILE.faiss."""
    starts = range(0, len(vectors), index.BLOCK)
    blocks = (np.ascontiguousarray(vectors[start : start + index.BLOCK], np.float32) for start in starts)
    with files.replacing(file) as part:
        if file.endswith(".npy"):
            with open(str(part), "wb") as opened:
                index.write_vectors(opened, vectors.shape, "float32", blocks)
            return
        faiss = optional_package("faiss", "faiss-cpu")
        flat = faiss.IndexFlatIP(vectors.shape[1])
        for block in blocks:
            flat.add(block)
        faiss.write_index(flat, str(part))


def main():
    options = arguments()
    facts, items, vectors = index.read(options.index)
    if options.export:
        export(options.export, vectors)
        print(f"written: {options.export}, {vectors.shape[0]} x {vectors.shape[1]}")
        return
    if options.like:
        queries, described = like(options, items, vectors)
        queries = [query._replace(path=os.path.join(facts["folder"], query.path)) for query in queries]
    else:
        queries, described = describe_queries(options, facts, find_queries(options.queries, options.box))
    try:
        if options.like:
            found, distances = nearest_others(described, options.like, options.k, vectors)
        else:
            found, distances = nearest(described, min(options.k, len(vectors)), vectors, return_distances=True)
    except ValueError as error:  # a vector that is not finite
        raise InputError(f"{options.index}: {error}; {index.DAMAGED}")
    if not os.path.isdir(facts["folder"]):
        moved = "the pictures are no longer there; describe them again at their new place, which computes nothing anew"
        print(f"note: {facts['folder']}: {moved}", file=sys.stderr)
    if options.html:
        # Not before: it imports MXNet, which takes far longer than a search by --like.
        from cgd.system.environment import memory_for

        with memory_for("give fewer queries, a smaller -k, or --gpu -1"):
            write_page(options, facts, items, vectors, queries, described, found, distances)
    for query, row, far in zip(queries, found, distances):
        neighbours = neighbours_of(row, far, items, facts["folder"])
        if options.json:
            print(json.dumps({"query": query.path, "neighbours": neighbours}))
        else:
            print(f"{query.path}\n{text_of(neighbours)}")


if __name__ == "__main__":
    errors.run(main)
