"""Pictures: to the pixel what the authors' evaluation code sees, and the same whichever process reads them."""

import numpy as np
import pytest
from PIL import Image

from cgd import images
from cgd.datasets import Record
from cgd.environment import mx
from cgd.errors import InputError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Five pictures of noise on a slope, with boxes, some of which reach over the border."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.RandomState(0)
    boxes = [(10, 5, 60, 70), (0, 0, 100, 80), (50, 40, 500, 500), None, (99, 79, 1, 1)]
    records = []
    for number, box in enumerate(boxes):
        pixels = random.randint(0, 100, (80, 100, 3)) + np.arange(100)[None, :, None]
        path = folder / "{}.jpg".format(number)
        Image.fromarray(pixels.astype(np.uint8)).save(str(path), quality=95)
        records.append(Record(path, number % 2, box, number + 1))
    return records


def released_view(record, size):
    """The authors' pipeline: imread, the slice of their dataset class, and Gluon's transforms."""
    transforms = mx.gluon.data.vision.transforms
    pipeline = transforms.Compose([transforms.Resize(size), transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    image = mx.image.imread(str(record.path))
    if record.box is not None:
        x, y, w, h = record.box
        image = image[y : min(y + h, image.shape[0]), x : min(x + w, image.shape[1])]
    return pipeline(image).asnumpy()


@pytest.mark.parametrize("size", [(32, 32), (40, 24)])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_test_view_is_the_released_one_to_the_bit(records, size, workers):
    batches = images.loader(images.TestView(records, size), images.test_batches(len(records), 2), workers)
    ours, identities = zip(*[(images.normalise(p, MEAN, STD).asnumpy(), labels) for p, labels in batches])
    assert [len(batch) for batch in ours] == [2, 2, 1]
    assert np.concatenate(identities).tolist() == [0, 1, 0, 1, 0]
    np.testing.assert_array_equal(np.concatenate(ours), np.stack([released_view(record, size) for record in records]))


def test_resizing_is_bilinear_between_pixel_centres():
    """Twice as large, by hand: the centres fall on quarters."""
    row = mx.nd.array([[[0], [100]]], dtype="uint8").broadcast_to((1, 2, 3))
    assert images.resize(row, (4, 1)).asnumpy()[0, :, 0].tolist() == [0, 25, 75, 100]


def test_a_crop_is_the_box_cut_off_at_the_border():
    image = mx.nd.arange(5 * 6 * 3).reshape((5, 6, 3))
    expected = image.asnumpy()
    np.testing.assert_array_equal(images.crop(image, (1, 2, 3, 2)).asnumpy(), expected[2:4, 1:4])
    np.testing.assert_array_equal(images.crop(image, (4, 3, 9, 9)).asnumpy(), expected[3:, 4:])
    assert images.crop(image, None) is image
    for box in [(6, 0, 2, 2), (0, 5, 2, 2), (-1, 0, 2, 2)]:
        with pytest.raises(InputError, match="outside"):
            images.crop(image, box)


def training_batch(records, workers, keys):
    view = images.TrainingView(records, (16, 16), (20, 20))
    return np.concatenate([p.asnumpy() for p, _ in images.loader(view, [keys[:3], keys[3:]], workers)])


def test_augmentation_depends_on_the_seed_and_not_on_the_process(records):
    keys = [(index, 100 + index) for index in range(5)]
    here = training_batch(records, 0, keys)
    assert here.shape == (5, 16, 16, 3) and here.dtype == np.uint8
    np.testing.assert_array_equal(here, training_batch(records, 2, keys))
    assert (here != training_batch(records, 0, [(index, 7) for index in range(5)])).any()


def test_augmentation_is_every_crop_and_flip_of_the_enlarged_picture(records):
    enlarged = images.resize(images.read_image(records[3].path), (18, 17)).asnumpy()
    pieces = [enlarged[y : y + 16, x : x + 16] for y in range(2) for x in range(3)]
    possible = {piece.tobytes() for piece in pieces} | {piece[:, ::-1].tobytes() for piece in pieces}
    view = images.TrainingView(records, (16, 16), (18, 17))
    seen = {view[(3, seed)][0].tobytes() for seed in range(200)}
    assert seen == possible


def test_a_picture_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "note.jpg").write_bytes(b"this is no picture")
    (tmp_path / "empty.jpg").write_bytes(b"")
    for name in ("note.jpg", "empty.jpg", "missing.jpg"):
        with pytest.raises(InputError, match=name):
            images.read_image(tmp_path / name)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_workers_error_reaches_the_user_with_the_files_name(records, tmp_path, workers):
    (tmp_path / "note.jpg").write_bytes(b"this is no picture")
    broken = records[:2] + [Record(tmp_path / "note.jpg", 0, None, 9)]
    with pytest.raises(InputError, match="note.jpg"):
        list(images.loader(images.TestView(broken, (16, 16)), images.test_batches(3, 2), workers))


def test_a_box_outside_its_picture_is_named(records):
    record = records[0]._replace(box=(100, 0, 5, 5))
    with pytest.raises(InputError, match="0.jpg.*outside"):
        images.TestView([record], (16, 16))[0]
