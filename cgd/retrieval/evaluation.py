"""Evaluation: the descriptors of a data set's test half, and their Recall@K."""

import time
from collections import namedtuple

import numpy as np
from tqdm import tqdm

from cgd.data import images
from cgd.data.loader import Loader
from cgd.retrieval.recall import recall_at_k
from cgd.system.environment import mx
from cgd.system.errors import InputError

# How pictures are made ready: size (width, height), mean and std of the three channels.
Preprocessing = namedtuple("Preprocessing", "size mean std")

# embeddings : (N, dim) float32 · identities : (N,) int · records : the N records they describe
Embeddings = namedtuple("Embeddings", "embeddings identities records")

# recalls : list of float, one for each rank · queries : Embeddings · gallery : Embeddings, or None
# images_per_second : reading to descriptor · search_seconds : the time Recall@K took
Result = namedtuple("Result", "recalls queries gallery images_per_second search_seconds")


class Evaluator:
    """Measures Recall@K of a data set's test half, as often as it is asked to.

    Its loader processes are forked once, here: create it before the GPU is used.

    Parameters
    ----------
    dataset : datasets.Dataset
    preprocessing : Preprocessing
    batch_size, num_workers : int, images a step, and processes that decode ahead of the network
    unreadable : loader.Unreadable; the pictures it lets pass are no queries and are not found
    """

    def __init__(self, dataset, preprocessing, batch_size, num_workers, unreadable=None):
        self.dataset = dataset
        records = dataset.test + (dataset.gallery or [])
        self.extractor = Extractor(records, preprocessing, batch_size, num_workers, unreadable)

    def __call__(self, embed, ctx, quiet=False):
        """Recall@K of the test half, among itself or against its gallery, as a `Result`.

        embed : (N, 3, H, W) -> (N, dim), the network
        ctx : the device that `embed` runs on
        quiet : no progress bar
        """
        start = time.time()
        embeddings, readable = self.extractor(embed, ctx, quiet)
        extracted = time.time()
        dataset, split = self.dataset, len(self.dataset.test)
        queries = _embeddings(embeddings[:split], dataset.test, readable[:split])
        gallery, searched_in = None, ()
        if dataset.gallery:
            gallery = _embeddings(embeddings[split:], dataset.gallery, readable[split:])
            searched_in = gallery.embeddings, gallery.identities
        recalls = recall_at_k(queries.embeddings, queries.identities, dataset.ranks, *searched_in)
        searched = time.time()
        return Result(recalls, queries, gallery, len(readable) / (extracted - start), searched - extracted)


def _embeddings(embeddings, records, readable):
    """`Embeddings`: the pictures that could be read."""
    if not readable.any():
        raise InputError(f"none of the {len(records)} test pictures could be read")
    records = [record for record, whole in zip(records, readable) if whole]
    return Embeddings(embeddings[readable], np.array([record.identity for record in records]), records)


class Extractor:
    """The descriptors of records, in their order; its loader processes are forked once, here."""

    def __init__(self, records, preprocessing, batch_size, num_workers, unreadable=None):
        view = images.EvalView(records, preprocessing.size)
        self.preprocessing, self.batch_size = preprocessing, min(batch_size, len(records))
        self.loader = Loader(view, self.batch_size, num_workers, unreadable)

    def __call__(self, embed, ctx, quiet=False):
        """(N, dim) float32 array, and an (N,) bool array: whether the picture could be read (see Evaluator)."""
        count, rows, readable = len(self.loader.view), [], []
        batches = self.loader.batches(images.eval_batches(count, self.batch_size))
        with tqdm(total=count, unit="image", disable=quiet, mininterval=0.5, leave=False) as progress:
            for pictures, _, whole in batches:
                rows.append(embed(self._prepared(pictures, ctx)))
                readable.append(whole)
                if len(rows) > 1:  # waits for the batch before this one only: the device is never idle
                    rows[-2] = rows[-2].asnumpy()
                    progress.update(len(rows[-2]))
            rows[-1] = rows[-1].asnumpy()
        embeddings = np.concatenate(rows)[:count]
        if not np.isfinite(embeddings).all():
            raise InputError("the network's descriptors are not finite")
        return embeddings, np.concatenate(readable)

    def _prepared(self, pictures, ctx):
        """The network's input. The last batch is filled up: cuDNN would tune each convolution for another size."""
        x = images.normalise(pictures.as_in_context(ctx), self.preprocessing.mean, self.preprocessing.std)
        missing = self.batch_size - len(x)
        return mx.nd.concat(x, mx.nd.zeros((missing, *x.shape[1:]), ctx=ctx), dim=0) if missing else x


def report(ranks, recalls):
    """The lines `R@   1: 0.7681`, as the authors' evaluation code prints them."""
    return "\n".join(f"R@{k:4d}: {recall:.4f}" for k, recall in zip(ranks, recalls))
