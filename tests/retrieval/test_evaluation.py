"""What an evaluation says of networks that retrieve nothing."""

import itertools
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from cgd.data import datasets
from cgd.data.datasets import Dataset, Record
from cgd.data.loader import Unreadable
from cgd.retrieval import evaluation, outputs
from cgd.system.environment import mx
from cgd.system.errors import InputError

PREPARATION = evaluation.Preprocessing((8, 8), (0, 0, 0), (1, 1, 1))


@pytest.fixture
def evaluate(records):
    """Evaluates a function (N, 3, 8, 8) -> (N, dim) on five pictures of two classes."""
    whole = [record._replace(box=None) for record in records]
    return lambda embed: evaluation.Evaluator(Dataset("d", [], whole, (1, 2)), PREPARATION, 2, 0)(embed, mx.cpu())


def test_equal_embeddings_find_nothing_and_a_line_says_why(evaluate, capsys):
    assert evaluate(lambda x: mx.nd.ones((len(x), 4))).recalls == [0, 0]
    assert "warning: all embeddings are equal; ties with other classes count as misses" in capsys.readouterr().err
    assert max(evaluate(lambda x: 5e-7 * x.mean(axis=(2, 3))).recalls) > 0
    assert "warning: all embeddings are practically equal: their values differ by about" in capsys.readouterr().err
    assert max(evaluate(lambda x: x.mean(axis=(2, 3))).recalls) > 0
    assert "all embeddings are" not in capsys.readouterr().err


def test_an_unreadable_picture_of_the_gallery_is_not_searched_in(records, tmp_path, capsys):
    """Its picture would be black: here the nearest of the dark query, and wrong."""
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    Image.new("RGB", (8, 8), (9, 9, 9)).save(str(tmp_path / "dark.png"))
    query = Record(str(tmp_path / "dark.png"), 0, None, 90)
    gallery = [record._replace(box=None, identity=0, image_id=n) for n, record in enumerate(records)]
    broken = Record(str(tmp_path / "broken.jpg"), 1, None, 91)

    def evaluated(gallery):
        data = Dataset("d", [], [query], (1,), gallery=gallery)
        return evaluation.Evaluator(data, PREPARATION, 2, 0, Unreadable(5))(lambda x: x.mean(axis=(2, 3)), mx.cpu())

    found, expected = evaluated([*gallery[:2], broken, *gallery[2:]]), evaluated(gallery)
    assert "broken.jpg" in capsys.readouterr().err
    assert found.recalls == expected.recalls == [1.0]
    np.testing.assert_array_equal(found.gallery.embeddings, expected.gallery.embeddings)
    assert [record.image_id for record in found.gallery.records] == [record.image_id for record in gallery]


def test_embeddings_that_are_not_finite_are_told(evaluate):
    with pytest.raises(InputError, match="the network's embeddings are not finite"):
        evaluate(lambda x: x.mean(axis=(2, 3)) * np.nan)


def test_results_of_other_classes_are_not_compared_even_if_their_pictures_have_the_same_names(tmp_path):
    """Two folders of class folders, as many pictures in each, whose classes get the same numbers."""

    def dataset(*names):
        for name, file in itertools.product(names, ("0.jpg", "1.jpg")):
            (tmp_path / "-".join(names) / "test" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "-".join(names) / "test" / name / file).touch()
        return datasets.load("folders", tmp_path / "-".join(names), need_training=False)

    pets, things = dataset("cats", "dogs"), dataset("cars", "houses")
    kept = "pets.json", (outputs.digest_of(pets.test, pets), None), np.ones(4, bool)
    outputs.check_same_images(kept, pets, pets.test, None)
    with pytest.raises(InputError, match="pets.json: is of other queries"):
        outputs.check_same_images(kept, things, things.test, None)


def test_results_by_lists_are_compared_with_those_of_the_official_files(records):
    """Lists have the ids of the classes without their names."""
    named, plain = (Dataset("cub200", [], records, (1,), None, classes) for classes in classes_of(records))
    assert outputs.digest_of(records, named) == outputs.digest_of(records, plain._replace(name="lists"))


def classes_of(records):
    ids = range(101, 102 + max(record.identity for record in records))
    return [[datasets.Class(each, name) for each in ids] for name in ("Sparrow", "")]


def test_descriptors_are_kept_in_one_block(records):
    """Arrays kept for each batch made the memory grow by the pixels of all pictures: malloc could not use its holes."""
    pictures, dim = 4 * [record._replace(box=None) for record in records], 1000
    kept = []

    def embed(x):
        kept.append(sum(trace.size == 2 * dim * 4 for trace in tracemalloc.take_snapshot().traces))
        return mx.nd.ones((2, dim))

    extractor = evaluation.Extractor(pictures, PREPARATION, 2, 0)
    tracemalloc.start()
    try:
        embeddings, readable = extractor(embed, mx.cpu(), quiet=True)
    finally:
        tracemalloc.stop()
    assert embeddings.shape == (20, dim) and readable.all() and len(kept) == 10
    assert max(kept) <= 3
