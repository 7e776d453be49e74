"""Evaluation: the descriptors of a data set's test half, and their Recall@K."""

import time
from collections import namedtuple

import numpy as np
from tqdm import tqdm

from cgd import images
from cgd.errors import InputError
from cgd.retrieval import recall_at_k

# How pictures are made ready: size (width, height), mean and std of the three channels.
Preparation = namedtuple("Preparation", "size mean std")

# embeddings : (N, dim) float32 · identities : (N,) int · records : the N records they describe
Described = namedtuple("Described", "embeddings identities records")

# recalls : list of float, one for each rank · queries : Described · gallery : Described, or None
# images_per_second : reading to descriptor · search_seconds : the time Recall@K took
Result = namedtuple("Result", "recalls queries gallery images_per_second search_seconds")


def evaluate(embed, dataset, preparation, ctx, batch_size, num_workers, unreadable=None, quiet=False):
    """Recall@K of the data set's test half, among itself or against its gallery, as a `Result`.

    embed : (N, 3, H, W) -> (N, dim), the network
    ctx : the device that `embed` runs on
    batch_size, num_workers : images a step, and processes that decode ahead of the network
    unreadable : images.Unreadable; the pictures it lets pass are no queries and are not found
    """
    start = time.time()
    queries, gallery = (
        records and extract(embed, records, preparation, ctx, batch_size, num_workers, unreadable, quiet)
        for records in (dataset.test, dataset.gallery)
    )
    extracted = time.time()
    searched_in = (gallery.embeddings, gallery.identities) if gallery else ()
    recalls = recall_at_k(queries.embeddings, queries.identities, dataset.ranks, *searched_in)
    searched = time.time()
    images_per_second = len(dataset.test + (dataset.gallery or [])) / (extracted - start)
    return Result(recalls, queries, gallery, images_per_second, searched - extracted)


def extract(embed, records, preparation, ctx, batch_size, num_workers, unreadable=None, quiet=False):
    """`Described`: the descriptors of `records`, in their order, less the pictures that `unreadable` lets pass."""
    view = images.TestView(records, preparation.size)
    batches = images.loader(view, images.test_batches(len(records), batch_size), num_workers, unreadable)
    rows, readable = [], []
    with tqdm(total=len(records), unit="image", disable=quiet, mininterval=0.5) as progress:
        for pictures, _, whole in batches:
            pictures = pictures.as_in_context(ctx)
            rows.append(embed(images.normalise(pictures, preparation.mean, preparation.std)))
            readable.append(whole)
            if len(rows) > 1:  # waits for the batch before this one only: the device is never idle
                rows[-2] = rows[-2].asnumpy()
                progress.update(len(rows[-2]))
        rows[-1] = rows[-1].asnumpy()
        progress.update(len(rows[-1]))
    readable = np.concatenate(readable)
    if not readable.any():
        raise InputError("none of the {} test pictures could be read".format(len(records)))
    records = [record for record, whole in zip(records, readable) if whole]
    return Described(np.concatenate(rows)[readable], np.array([record.identity for record in records]), records)


def report(ranks, recalls):
    """The lines `R@   1: 0.7681`, as the authors' evaluation code prints them."""
    return "\n".join("R@{:4d}: {:.4f}".format(k, recall) for k, recall in zip(ranks, recalls))
