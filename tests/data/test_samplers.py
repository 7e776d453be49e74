"""What the sampler promises of every batch."""

import numpy as np
import pytest

from cgd.data.samplers import IdentitySampler
from cgd.system.errors import InputError

IDENTITIES = np.repeat(np.arange(20), [1, 2, 3, 4] + [9] * 16)


def sampler(**changes):
    options = dict(identities=IDENTITIES, batch_size=32, images_per_identity=4, seed=5, stop=200)
    return IdentitySampler(**dict(options, **changes))


def test_every_batch_has_p_identities_and_k_images_of_each():
    batches = list(sampler())
    assert len(batches) == len(sampler()) == 200
    for batch in batches:
        identities = IDENTITIES[[index for index, _ in batch]]
        values, counts = np.unique(identities, return_counts=True)
        assert len(batch) == 32 and len(values) == 8 and (counts == 4).all()


def test_images_repeat_only_where_an_identity_has_too_few():
    for batch in sampler():
        indices = np.array([index for index, _ in batch]).reshape(8, 4)
        for group in indices:
            available = (IDENTITIES == IDENTITIES[group[0]]).sum()
            assert len(set(group)) == min(4, available)


def test_every_image_is_drawn_sooner_or_later():
    assert {index for batch in sampler() for index, _ in batch} == set(range(len(IDENTITIES)))


def test_identities_are_drawn_evenly():
    counts = np.bincount([IDENTITIES[index] for batch in sampler(stop=2000) for index, _ in batch]) / 4
    assert abs(counts / 800 - 1).max() < 0.2  # 2,000 batches x 8 of 20 identities: 800 each, deviation 22


def test_augmentation_seeds_differ():
    seeds = [seed for batch in sampler() for _, seed in batch]
    assert len(set(seeds)) > 0.99 * len(seeds)


def test_the_same_seed_gives_the_same_batches_wherever_a_run_begins():
    whole = list(sampler())
    assert whole == list(sampler())
    later = sampler()
    later.start = 120
    assert whole[120:] == list(later) and len(later) == 80


def test_no_batch_comes_twice_and_another_seed_has_other_batches():
    """Not the same ones at other places, either: runs of several seeds would then be one run, shifted."""
    batches = {seed: {tuple(batch) for batch in sampler(seed=seed)} for seed in (5, 6, 7)}
    assert [len(found) for found in batches.values()] == [200] * 3
    assert len(set.union(*batches.values())) == 600


def test_labels_need_not_be_in_order():
    identities = np.array([3, 1, 3, 1, 2, 2, 3, 1])
    for batch in sampler(identities=identities, batch_size=4, images_per_identity=2):
        values, counts = np.unique(identities[[index for index, _ in batch]], return_counts=True)
        assert len(values) == 2 and (counts == 2).all()


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(batch_size=30), "multiple"),
        (dict(batch_size=0), "positive"),
        (dict(images_per_identity=0), "multiple"),
        (dict(batch_size=84), "21 identities.*there are 20"),
    ],
)
def test_impossible_batches_are_said(changes, words):
    with pytest.raises(InputError, match=words):
        sampler(**changes)


def test_workers_share_the_batches_among_them():
    alone = list(sampler(stop=12))
    workers = [list(sampler(stop=4, worker=(rank, 3))) for rank in range(3)]
    assert [batch for side_by_side in zip(*workers) for batch in side_by_side] == alone
    later = sampler(stop=4, worker=(2, 3))
    later.start = 1
    assert list(later) == alone[5::3]
