"""Evaluation: embeddings of the test split of a data set, and their Recall@K."""

import sys
import time
from collections import namedtuple
from functools import reduce

import numpy as np
from tqdm import tqdm

from cgd.data import images
from cgd.data.loader import Loader
from cgd.retrieval.recall import count_nearer
from cgd.system.environment import mx
from cgd.system.errors import InputError

# size : (width, height) of the network's input · mean, std : of the three channels, for x / 255
Preprocessing = namedtuple("Preprocessing", "size mean std")

# embeddings : (N, dim) float32 · identities : (N,) int · records : the N Records
Embeddings = namedtuple("Embeddings", "embeddings identities records")

# recalls : list of float, one per rank · queries : Embeddings · gallery : Embeddings, or None
# nearer : (N,) int, for each query as recall.count_nearer: it is a hit at K if this is below K
# images_per_second : rate of extraction, including reading · search_seconds : time to compute Recall@K
Result = namedtuple("Result", "recalls nearer queries gallery images_per_second search_seconds")


class Evaluator:
    """Measures Recall@K on the test split of a data set; can be called repeatedly.

    The constructor forks the loader processes, so create it before the GPU is used.

    Parameters
    ----------
    dataset : datasets.Dataset
    preprocessing : Preprocessing
    batch_size : int, images per batch
    num_workers : int, processes that decode images
    unreadable : loader.Unreadable; the images it skips are excluded from queries and gallery
    """

    def __init__(self, dataset, preprocessing, batch_size, num_workers, unreadable=None):
        self.dataset = dataset
        records = dataset.test + (dataset.gallery or [])
        self.extractor = Extractor(records, preprocessing, batch_size, num_workers, unreadable)

    def __call__(self, embed, ctx, quiet=False):
        """Evaluates the test split, searched in its gallery or in itself. Returns a `Result`.

        embed : function (N, 3, H, W) -> (N, dim), the network
        ctx : device that `embed` runs on
        quiet : hides the progress bar
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
        if readable.sum() > 1:
            warn_of_equal([part.embeddings for part in (queries, gallery) if part])
        nearer = count_nearer(queries.embeddings, queries.identities, max(dataset.ranks), *searched_in)
        recalls = [float(np.mean(nearer < rank)) for rank in dataset.ranks]
        searched = time.time()
        return Result(recalls, nearer, queries, gallery, len(readable) / (extracted - start), searched - extracted)


def warn_of_equal(parts):
    """Warns if a network has collapsed. parts : list of arrays (N, dim), of all images together"""
    least, most = (reduce(best, (best.reduce(part) for part in parts)) for best in (np.minimum, np.maximum))
    spread = (most - least).max()
    if spread < 1e-6:
        equal = "all embeddings are equal; ties with other classes count as misses"
        nearly = f"all embeddings are practically equal: their values differ by about {spread:.0e} at most"
        why = "usual in the first 50 or so iterations from random weights, where batch norm's running statistics lag"
        tqdm.write(f"warning: {nearly if spread else equal}; {why}", file=sys.stderr)


def _embeddings(embeddings, records, readable):
    """The `Embeddings` of the readable images."""
    if not readable.any():
        raise InputError(f"none of {len(records)} images could be read, the first of them {records[0].path}")
    if not readable.all():  # otherwise a copy would take as much memory again
        embeddings, records = embeddings[readable], [record for record, ok in zip(records, readable) if ok]
    return Embeddings(embeddings, np.array([record.identity for record in records]), records)


class Extractor:
    """Extracts the embeddings of records, in their order. The constructor forks the loader processes."""

    def __init__(self, records, preprocessing, batch_size, num_workers, unreadable=None):
        view = images.EvalView(records, preprocessing.size)
        self.preprocessing, self.batch_size = preprocessing, min(batch_size, len(records))
        self.loader = Loader(view, self.batch_size, num_workers, unreadable)

    def __call__(self, embed, ctx, quiet=False):
        """Returns embeddings (N, dim), float32, and readable (N,), bool: whether each image could be read.

        Arguments are those of `Evaluator`.
        """
        embeddings, readable = None, np.zeros(len(self.loader.view), bool)
        for number, (vectors, ok) in enumerate(self.batches(embed, ctx, quiet)):
            if embeddings is None:
                # One block for all: an array kept for each batch would lie where a batch of pictures has been, and
                # malloc would find no room there for the next one. Memory grew by the pixels of every picture.
                embeddings = np.empty((len(readable), vectors.shape[1]), np.float32)
            rows = slice(number * self.batch_size, number * self.batch_size + len(ok))
            embeddings[rows], readable[rows] = vectors, ok
        return embeddings, readable

    def batches(self, embed, ctx, quiet=False):
        """Yields embeddings and readable, as above, of one batch of records after the other."""
        count, waiting = len(self.loader.view), []
        with tqdm(total=count, unit="image", disable=quiet, mininterval=0.5, leave=False) as progress:
            for pictures, _, readable in self.loader.batches(images.eval_batches(count, self.batch_size)):
                x = network_input(pictures, self.preprocessing, ctx, self.batch_size)
                waiting.append((embed(x), readable))
                if len(waiting) > 1:  # waits for the previous batch only, so that the device is never idle
                    yield _finished(*waiting.pop(0))
                    progress.update(self.batch_size)
            yield _finished(*waiting.pop())


def network_input(pictures, preprocessing, ctx, batch_size):
    """Pictures (n, H, W, 3), uint8 NDArray -> the network's input (batch_size, 3, H, W) on the device `ctx`.

    A smaller batch is padded, because cuDNN tunes each convolution for every batch size.
    """
    x = images.normalise(pictures.as_in_context(ctx), preprocessing.mean, preprocessing.std)
    missing = batch_size - len(x)
    return mx.nd.concat(x, mx.nd.zeros((missing, *x.shape[1:]), ctx=ctx), dim=0) if missing else x


def _finished(embeddings, readable):
    return finite(embeddings.asnumpy()[: len(readable)]), readable


def finite(embeddings):
    """The embeddings. Raises InputError if a value is not finite."""
    if not np.isfinite(embeddings).all():
        raise InputError("the network's embeddings are not finite")
    return embeddings


def report(ranks, recalls):
    """The recalls in the format of the authors' evaluation code: lines `R@   1: 0.7681`."""
    return "\n".join(f"R@{k:4d}: {recall:.4f}" for k, recall in zip(ranks, recalls))
