"""The maps of a page's pairs: those of the pictures as the network sees them, without what all share."""

import numpy as np
import pytest
from PIL import Image

from cgd.data import images
from cgd.gallery import page, similarity
from cgd.network import checkpoints
from cgd.retrieval import maps
from cgd.system.environment import mx
from conftest import lively_network

SIDE = 96  # a map of 3 x 3 places


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    prefix = tmp_path_factory.mktemp("net") / "net"
    description = {"image_width": SIDE, "image_height": SIDE, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}
    checkpoints.save(lively_network("mobilenet0.25", SIDE, config="MG"), str(prefix), description)
    return checkpoints.Checkpoint(prefix)


def test_maps_are_of_the_cropped_pictures_in_their_order(checkpoint, tmp_path, monkeypatch):
    """Also where few pairs are held at a time; a pair with a picture that cannot be read has none."""
    boxes = [(5, 0, 40, 30), None, (0, 10, 25, 50)]
    for number in range(3):
        pixels = np.random.RandomState(number).randint(0, 256, (60 + number, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(str(tmp_path / f"{number}.png"))
    items = [page.Item(str(tmp_path / f"{number}.png"), box, "") for number, box in enumerate(boxes)]
    (tmp_path / "broken.png").write_text("no picture")
    pairs = [(items[0], items[1]), (items[2], items[0]), (items[1], page.Item(str(tmp_path / "broken.png"), None, ""))]
    common = np.random.RandomState(9).randn(12)
    vectors = maps.PlaceVectors(checkpoint, mx.cpu())
    cropped = [images.crop(images.read_image(item.path), item.box).asnumpy() for item in items]
    places = [maps.without(each, common) for each in vectors(cropped)]
    for held in (similarity.PAIRS, 1):
        monkeypatch.setattr(similarity, "PAIRS", held)
        *found, none = similarity.maps_of(checkpoint, mx.cpu(), common)(pairs)
        assert none == []
        for listed, (a, b) in zip(found, [(0, 1), (2, 0)]):
            expected = maps.similarity_maps(places[a], places[b])
            assert [each.name for each in listed] == ["all", "M", "G"]
            assert listed[0].value == pytest.approx(expected.similarity, abs=1e-5)
            sides = [(expected.a.whole, expected.b.whole)]
            sides += [(expected.a.branches[letter], expected.b.branches[letter]) for letter in "MG"]
            for each, (query, neighbour) in zip(listed, sides):
                np.testing.assert_allclose(each.query, query, atol=1e-5)
                np.testing.assert_allclose(each.neighbour, neighbour, atol=1e-5)
                assert np.abs(query - neighbour).max() > 1e-3  # so that an exchange would be noticed
            assert listed[1].value == pytest.approx(float(sides[1][0].sum()), abs=1e-5)
