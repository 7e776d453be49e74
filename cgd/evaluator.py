"""Evaluation: the descriptors of a data set's test half, and their Recall@K."""

import time
from collections import namedtuple

import numpy as np
from tqdm import tqdm

from cgd import images
from cgd.retrieval import recall_at_k

# How pictures are made ready: size (width, height), mean and std of the three channels.
Preparation = namedtuple("Preparation", "size mean std")

# recalls : list of float, one for each rank · embeddings : (N, dim) float32 · identities : (N,) int
# images_per_second : reading to descriptor · search_seconds : the time Recall@K took
Result = namedtuple("Result", "recalls embeddings identities images_per_second search_seconds")


def evaluate(embed, records, ranks, preparation, ctx, batch_size, num_workers, quiet=False):
    """Recall@K of `records` among themselves, as a `Result`.

    embed : (N, 3, H, W) -> (N, dim), the network
    ranks : the K
    ctx : the device that `embed` runs on
    batch_size, num_workers : images a step, and processes that decode ahead of the network
    """
    start = time.time()
    embeddings, identities = extract(embed, records, preparation, ctx, batch_size, num_workers, quiet)
    extracted = time.time()
    recalls = recall_at_k(embeddings, identities, ranks)
    searched = time.time()
    return Result(recalls, embeddings, identities, len(records) / (extracted - start), searched - extracted)


def extract(embed, records, preparation, ctx, batch_size, num_workers, quiet=False):
    """The descriptors (N, dim) float32 and the identities (N,) of `records`, in their order."""
    view = images.TestView(records, preparation.size)
    batches = images.loader(view, images.test_batches(len(records), batch_size), num_workers)
    rows, identities = [], []
    with tqdm(total=len(records), unit="image", disable=quiet, mininterval=0.5) as progress:
        for pictures, labels in batches:
            pictures = pictures.as_in_context(ctx)
            rows.append(embed(images.normalise(pictures, preparation.mean, preparation.std)))
            identities.append(labels)
            if len(rows) > 1:  # waits for the batch before this one only: the device is never idle
                rows[-2] = rows[-2].asnumpy()
                progress.update(len(rows[-2]))
        rows[-1] = rows[-1].asnumpy()
        progress.update(len(rows[-1]))
    return np.concatenate(rows), np.concatenate(identities)


def report(ranks, recalls):
    """The lines `R@   1: 0.7681`, as the authors' evaluation code prints them."""
    return "\n".join("R@{:4d}: {:.4f}".format(k, recall) for k, recall in zip(ranks, recalls))
