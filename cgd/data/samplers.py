"""Sampler of training batches: P identities, K images of each."""

import numpy as np

from cgd.system.errors import InputError


class IdentitySampler:
    """Samples batches of P identities x K images, as (record index, augmentation seed) pairs.

    Identities are drawn without replacement within a batch, and so are the images of an identity; if it has fewer than
    K images, they are repeated. Batch i depends on (seed, i) alone, so a resumed run draws the same batches as an
    uninterrupted one.

    Parameters
    ----------
    identities : sequence of int
        The identity of each record.
    batch_size, images_per_identity : int
        P x K and K.
    seed : int
    stop : int
        Yields batches `start` to stop - 1. The attribute `start` is 0, until a resumed run sets it.
    worker : (int, int)
        Rank r of this worker and number of workers n, for distributed training: batch i n + r is yielded instead of
        batch i, so that all workers draw different batches.

    Raises InputError if `batch_size` is not a multiple of K, or if there are fewer than P identities.
    """

    def __init__(self, identities, batch_size, images_per_identity, seed, stop, worker=(0, 1)):
        if batch_size < 1 or images_per_identity < 1 or batch_size % images_per_identity:
            raise InputError(
                f"--batch-size {batch_size}: expected a positive multiple of --images-per-identity "
                f"{images_per_identity}"
            )
        self.per_batch = batch_size // images_per_identity
        self.per_identity = images_per_identity
        self.seed, self.start, self.stop, self.worker = seed, 0, stop, worker
        identities = np.asarray(identities)
        order = np.argsort(identities, kind="stable")
        firsts = np.unique(identities[order], return_index=True)[1]
        self.groups = np.split(order, firsts[1:])  # record indices of each identity
        if len(self.groups) < self.per_batch:
            raise InputError(
                f"a batch needs {self.per_batch} identities (--batch-size / --images-per-identity), there are "
                f"{len(self.groups)} to train on: try --batch-size {len(self.groups) * images_per_identity}"
            )

    def __len__(self):
        return self.stop - self.start

    def __iter__(self):
        rank, workers = self.worker
        return (self.batch(number * workers + rank) for number in range(self.start, self.stop))

    def batch(self, number):
        """Batch `number`, a list of (record index, augmentation seed); images of an identity are adjacent."""
        random = np.random.RandomState([self.seed % 2**32, number])
        chosen = random.choice(len(self.groups), self.per_batch, replace=False)
        indices = np.concatenate([self._images(self.groups[group], random) for group in chosen])
        seeds = random.randint(2**31 - 1, size=len(indices))
        return list(zip(indices.tolist(), seeds.tolist()))

    def _images(self, group, random):
        rounds = -(-self.per_identity // len(group))
        return np.concatenate([random.permutation(group) for _ in range(rounds)])[: self.per_identity]
