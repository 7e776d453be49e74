"""The demo data set: drawn alike each time, whole or not at all, and its birds can be told apart."""

import shutil

import numpy as np
import pytest
from PIL import Image

from cgd.data import datasets
from cgd.data.birds import draw_demo
from cgd.system.errors import InputError

CLASSES, IMAGES = 8, 6


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return draw_demo(tmp_path_factory.mktemp("birds") / "demo", CLASSES, IMAGES)


def rows(folder, name):
    return [line.split() for line in (folder / (name + ".txt")).read_text().splitlines()]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def crops(folder):
    """The birds, cut out by their boxes and 16 x 16 small: (n, 16, 16, 3)."""
    found = []
    for (_, path), (_, x, y, width, height) in zip(rows(folder, "images"), rows(folder, "bounding_boxes")):
        box = (float(x), float(y), float(x) + float(width), float(y) + float(height))
        found.append(np.asarray(Image.open(folder / "images" / path).resize((16, 16), Image.BILINEAR, box=box), float))
    return np.array(found)


def test_same_seed_same_bytes(demo, tmp_path):
    assert contents(draw_demo(tmp_path / "again", CLASSES, IMAGES)) == contents(demo)


def test_another_seed_draws_other_birds(demo, tmp_path):
    other = crops(draw_demo(tmp_path / "other", 1, 2, seed=1))
    assert np.abs(other - crops(demo)[:2]).mean(axis=(1, 2, 3)).min() > 10


def test_lists_agree_with_each_other_and_with_the_files(demo):
    images, labels = rows(demo, "images"), rows(demo, "image_class_labels")
    classes = dict(rows(demo, "classes"))
    assert list(classes) == [str(label) for label in range(1, CLASSES + 1)]
    assert [number for number, _ in images] == [str(number) for number in range(1, CLASSES * IMAGES + 1)]
    assert [number for number, _ in labels] == [number for number, _ in images]
    assert [row[0] for row in rows(demo, "bounding_boxes")] == [number for number, _ in images]
    for (_, path), (_, label) in zip(images, labels):
        assert path.split("/")[0] == classes[label]
        assert classes[label].startswith("{:03d}.".format(int(label)))
    on_disk = {path.relative_to(demo / "images").as_posix() for path in demo.rglob("*.jpg")}
    assert on_disk == {path for _, path in images}
    assert len(on_disk) == CLASSES * IMAGES


def test_pictures_open_and_boxes_lie_inside(demo):
    sizes = set()
    for (_, path), (_, x, y, width, height) in zip(rows(demo, "images"), rows(demo, "bounding_boxes")):
        with Image.open(demo / "images" / path) as image:
            image.load()
        assert image.mode == "RGB" and 128 <= min(image.size) and max(image.size) <= 168
        sizes.add(image.size)
        assert min(float(x), float(y)) >= 0 and min(float(width), float(height)) >= 15
        assert float(x) + float(width) <= image.size[0] + 0.1 and float(y) + float(height) <= image.size[1] + 0.1
        assert 0.05 < float(width) * float(height) / (image.size[0] * image.size[1]) < 0.5
    assert len(sizes) > CLASSES


def nearest_is_of_its_class(pixels, labels):
    """Share of pictures whose nearest other picture, by the two's pixels, mirrored or not, is of the same class."""
    light = pixels.mean(axis=(1, 2), keepdims=True), pixels.std(axis=(1, 2), keepdims=True)
    pixels = (pixels - light[0]) / light[1]
    straight = np.abs(pixels[:, None] - pixels[None]).mean(axis=(2, 3, 4))
    mirrored = np.abs(pixels[:, None] - pixels[None, :, :, ::-1]).mean(axis=(2, 3, 4))
    distances = np.minimum(straight, mirrored)
    np.fill_diagonal(distances, np.inf)
    return (labels[distances.argmin(axis=1)] == labels).mean()


def test_a_bird_looks_like_its_kind(demo):
    """By chance it would be 5 of 47; boxes that miss the birds, or one look for all kinds, bring it down to that."""
    labels = np.repeat(np.arange(CLASSES), IMAGES)
    assert nearest_is_of_its_class(crops(demo), labels) > 0.5


def test_an_interrupted_drawing_leaves_nothing(tmp_path):
    def interrupted(labels):
        for label in labels:
            yield label
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw_demo(tmp_path / "demo", 3, 2, progress=interrupted)
    assert list(tmp_path.iterdir()) == []
    assert len(contents(draw_demo(tmp_path / "demo", 3, 2))) == 3 * 2 + 5


def test_a_whole_folder_is_kept(demo):
    before = {path: path.stat().st_mtime_ns for path in demo.rglob("*")}
    assert draw_demo(demo, CLASSES, IMAGES) == demo
    assert {path: path.stat().st_mtime_ns for path in demo.rglob("*")} == before


@pytest.mark.parametrize("classes, seed", [(CLASSES + 1, 0), (CLASSES, 1)])
def test_another_demo_is_not_taken_for_this_one(demo, classes, seed):
    with pytest.raises(InputError):
        draw_demo(demo, classes, IMAGES, seed)


def test_a_strange_folder_is_refused_and_kept(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError):
        draw_demo(tmp_path, 1, 1)
    assert contents(tmp_path) == {"notes.txt": b"mine"}


def test_images_of_another_version_are_not_read(small_demo, tmp_path):
    shutil.copytree(small_demo, tmp_path / "demo")
    assert len(datasets.load("demo", tmp_path / "demo").train) == 24
    drawn = tmp_path / "demo" / "drawn.txt"
    drawn.write_text(drawn.read_text().replace("drawing 1:", "drawing 0:"))
    with pytest.raises(InputError, match="drawn by another version of the program; delete it"):
        datasets.load("demo", tmp_path / "demo")


def test_two_processes_may_draw_the_same_set_at_once(tmp_path):
    """The slower one finds the set there when it comes to rename its own, and keeps it."""

    def classes_then_another(numbers):
        yield from numbers
        draw_demo(tmp_path / "demo", classes=2, images_per_class=2)

    folder = draw_demo(tmp_path / "demo", classes=2, images_per_class=2, progress=classes_then_another)
    assert len(list((folder / "images").rglob("*.jpg"))) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
