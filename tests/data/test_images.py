"""Pictures: to the pixel what the authors' evaluation code sees, and the same whichever process reads them."""

import io
import os
import struct

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from cgd.data import datasets, images
from cgd.data.loader import Loader
from cgd.system.environment import mx
from cgd.system.errors import InputError
from conftest import one_batch

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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
    batches = Loader(images.EvalView(records, size), 2, workers).batches(images.eval_batches(len(records), 2))
    ours, identities = zip(*[(images.normalise(p, MEAN, STD).asnumpy(), labels) for p, labels, _ in batches])
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
    return np.concatenate([p.asnumpy() for p, _, _ in Loader(view, 3, workers).batches([keys[:3], keys[3:]])])


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


@pytest.mark.parametrize("direct, expected", [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
def test_a_share_of_the_pictures_is_resized_direct(records, direct, expected):
    """Then it is the test's view, or its mirror image."""
    view = images.TrainingView(records, (16, 16), (40, 40), direct)
    plain = images.EvalView(records, (16, 16))[3][0]
    seen = [view[(3, seed)][0] for seed in range(100)]
    found = [any((picture == way).all() for way in (plain, plain[:, ::-1])) for picture in seen]
    assert abs(np.mean(found) - expected) < (0.15 if 0 < expected < 1 else 1e-9)


PIXELS = np.random.RandomState(0).randint(0, 256, (20, 30, 3)).astype(np.uint8)


def encoded(image, kind, **more):
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()


def read(folder, data):
    """What read_image makes of a file with these bytes, as an array."""
    (folder / "picture").write_bytes(data)
    return images.read_image(folder / "picture").asnumpy()


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
def test_pictures_without_loss_are_read_as_they_are(tmp_path, kind):
    np.testing.assert_array_equal(read(tmp_path, encoded(Image.fromarray(PIXELS), kind)), PIXELS)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "JPEG"])
def test_grey_pictures_have_three_equal_channels(tmp_path, kind):
    grey = Image.fromarray(PIXELS).convert("L")
    found = read(tmp_path, encoded(grey, kind))
    expected = np.asarray(Image.open(io.BytesIO(encoded(grey, kind))))
    np.testing.assert_array_equal(found, np.stack([expected] * 3, axis=2))


def test_a_palette_is_looked_up(tmp_path):
    palette = Image.fromarray(PIXELS).convert("P")
    np.testing.assert_array_equal(read(tmp_path, encoded(palette, "PNG")), np.asarray(palette.convert("RGB")))
    two = Image.fromarray(PIXELS).convert("1")
    np.testing.assert_array_equal(read(tmp_path, encoded(two, "PNG")), np.asarray(two.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_dropped(tmp_path, mode):
    picture = Image.fromarray(PIXELS).convert(mode)
    picture.putalpha(Image.fromarray(PIXELS[:, :, 0]))
    flat = np.asarray(picture)[:, :, :-1]
    np.testing.assert_array_equal(read(tmp_path, encoded(picture, "PNG")), np.broadcast_to(flat, PIXELS.shape))


def test_of_16_bits_the_upper_8_are_kept(tmp_path):
    values = PIXELS[:, :, 0].astype(np.uint16) * 256 + 255
    np.testing.assert_array_equal(read(tmp_path, encoded(Image.fromarray(values), "PNG"))[:, :, 1], PIXELS[:, :, 0])


def test_cmyk_becomes_rgb(tmp_path):
    """Red, green and blue areas: what CMYK conversions differ in is little beside the colours."""
    colours = np.repeat(np.repeat(np.eye(3, dtype=np.uint8)[None] * 255, 16, axis=0), 16, axis=1)
    found = read(tmp_path, encoded(Image.fromarray(colours).convert("CMYK"), "JPEG", quality=95))
    assert np.abs(found.astype(int) - colours).max() < 30


def test_the_cameras_note_on_turning_is_left_alone(tmp_path):
    """As in the authors' code, for whose reader the boxes were drawn: mx.image.imread."""
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn me by a quarter"
    data = encoded(Image.fromarray(PIXELS), "JPEG", exif=exif)
    assert Image.open(io.BytesIO(data)).getexif()[0x0112] == 6
    found = read(tmp_path, data)
    assert found.shape == PIXELS.shape
    np.testing.assert_array_equal(found, mx.image.imread(str(tmp_path / "picture")).asnumpy())
    np.testing.assert_array_equal(found, read(tmp_path, encoded(Image.fromarray(PIXELS), "JPEG")))


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PPM"])
def test_other_kinds_are_refused(tmp_path, kind):
    with pytest.raises(InputError, match="picture: expected a JPEG, PNG or BMP"):
        read(tmp_path, encoded(Image.fromarray(PIXELS), kind))


def photographed(kind):
    """A picture's bytes; a JPEG has a thumbnail in its head, with marks of its own, as cameras write them."""
    if kind != "JPEG":
        return encoded(Image.fromarray(PIXELS), kind)
    thumbnail = encoded(Image.fromarray(PIXELS[:8, :8]), "JPEG")
    head = b"\xff\xe1" + (len(thumbnail) + 8).to_bytes(2, "big") + b"Exif\0\0" + thumbnail
    whole = encoded(Image.fromarray(PIXELS), "JPEG")
    return whole[:2] + head + whole[2:]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP"])
def test_a_picture_cut_off_anywhere_is_an_error_or_whole(tmp_path, kind):
    data = photographed(kind)
    whole = read(tmp_path, data)
    refused = 0
    for length in range(len(data)):
        try:
            np.testing.assert_array_equal(read(tmp_path, data[:length]), whole)
        except InputError as error:
            assert str(error).startswith(str(tmp_path / "picture: ")), error
            refused += 1
    assert refused >= len(data) - 12  # less the last marks, whose absence harms no pixel


@pytest.mark.parametrize("thumbnail", [False, True])
def test_a_jpeg_cut_off_in_its_header_is_an_error(tmp_path, thumbnail):
    """OpenCV returns whatever lies in memory for some of these."""
    image = Image.fromarray(np.random.RandomState(0).randint(0, 256, (150, 200, 3)).astype(np.uint8))
    data = encoded(image, "JPEG")
    if thumbnail:
        small = encoded(image.resize((20, 15)), "JPEG")
        data = data[:2] + b"\xff\xe1" + (len(small) + 8).to_bytes(2, "big") + b"Exif\0\0" + small + data[2:]
    scan = data.rfind(b"\xff\xda")
    for length in range(10, scan):
        with pytest.raises(InputError, match="picture: "):
            read(tmp_path, data[:length])


def test_what_follows_a_whole_picture_does_not_matter(tmp_path):
    data = encoded(Image.fromarray(PIXELS), "JPEG")
    for more in (b"\0" * 100, b"\xff\xda and so on", encoded(Image.fromarray(PIXELS), "JPEG")[:300]):
        np.testing.assert_array_equal(read(tmp_path, data + more), read(tmp_path, data))


def test_a_picture_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "note.jpg").write_bytes(b"this is no picture")
    (tmp_path / "empty.jpg").write_bytes(b"")
    os.mkfifo(str(tmp_path / "pipe.jpg"))
    for name in ("note.jpg", "empty.jpg", "missing.jpg", "pipe.jpg"):
        with pytest.raises(InputError, match=name):
            images.read_image(tmp_path / name)


def test_a_png_with_a_long_text_is_read(tmp_path):
    """Longer than Pillow reads of one text."""
    more = PngImagePlugin.PngInfo()
    more.add_text("comment", "a" * 1_200_000, zip=True)
    Image.fromarray(PIXELS).save(str(tmp_path / "a.png"), pnginfo=more)
    np.testing.assert_array_equal(images.read_image(tmp_path / "a.png").asnumpy(), PIXELS)


def test_a_box_outside_its_picture_is_named(records):
    record = records[0]._replace(box=(100, 0, 5, 5))
    with pytest.raises(InputError, match="0.jpg.*outside"):
        one_batch(images.EvalView([record], (16, 16)), [0])


@pytest.mark.parametrize("length", [3, 20, 160])
def test_what_is_wrong_with_a_file_has_the_same_words_each_time(records, tmp_path, length):
    """Or it would count again at each reading, towards --skip-unreadable N."""
    (tmp_path / "cut.jpg").write_bytes(open(records[0].path, "rb").read()[:length])
    told = set()
    for _ in range(3):
        with pytest.raises(InputError, match="cut.jpg: ") as error:
            images.read_image(tmp_path / "cut.jpg")
        told.add(str(error.value))
    assert len(told) == 1 and " at 0x" not in told.pop()


def of_size(width, height):
    """A JPEG file of 8 x 8 pixels whose header says another size."""
    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, "JPEG")
    data = bytearray(data.getvalue())
    start = data.index(b"\xff\xc0") + 5  # of the frame: length, precision, height, width
    data[start : start + 4] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(data)


def test_a_photograph_of_200_megapixels_is_no_bomb_and_one_of_a_gigapixel_is_one_line(tmp_path):
    images._check(of_size(16320, 12240))
    (tmp_path / "huge.jpg").write_bytes(of_size(32000, 32000))
    with pytest.raises(InputError, match="huge.jpg: Image size .* exceeds limit"):
        images.read_image(tmp_path / "huge.jpg")


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.95])
def test_zeros_in_place_of_the_rest_of_a_jpeg_are_no_picture(tmp_path, kept):
    """As an interrupted download leaves them. With this much detail, Pillow decodes zeros to the end of the picture."""
    noise = np.random.RandomState(0).randint(0, 255, (96, 96, 3)).astype(np.uint8)
    data = encoded(Image.fromarray(noise), "JPEG", quality=95)
    assert read(tmp_path, data).shape == (96, 96, 3)
    end = int(kept * len(data))
    with pytest.raises(InputError, match="truncated"):
        read(tmp_path, data[:end] + bytes(len(data) - end))
    trailer = b"a film \xff\xda of a phone" + bytes(32)
    assert np.array_equal(read(tmp_path, data + trailer), read(tmp_path, data))


def test_half_of_the_pictures_are_flipped_and_every_crop_is_as_likely(tmp_path):
    """Of 4 x 1 pixels in 6 x 1: three places, two directions. Deviations of 400 draws: 10 of 200, 9.4 of 133."""
    line = np.arange(6, dtype=np.uint8)[None, :, None].repeat(3, axis=2)
    Image.fromarray(line).save(str(tmp_path / "line.png"))
    record = datasets.Record(str(tmp_path / "line.png"), 0, None, 0)
    view = images.TrainingView([record], (4, 1), (6, 1))
    drawn = [view[0, seed][0][0, :, 0].tolist() for seed in range(400)]
    assert abs(sum(row[0] > row[1] for row in drawn) - 200) < 50
    assert all(abs(sum(min(row) == first for row in drawn) - 400 / 3) < 47 for first in range(3))


def with_masks(masks):
    """A BMP of one pixel with red 200, green 100, blue 50 and alpha 255, at the places that the masks say."""
    value = sum(v * (mask & -mask) for v, mask in zip((200, 100, 50, 255), masks))
    head = struct.pack("<IiiHHIIiiII", 108, 1, 1, 1, 32, 3, 4, 0, 0, 0, 0) + struct.pack("<IIII", *masks) + bytes(52)
    return struct.pack("<2sIHHI", b"BM", 126, 0, 0, 122) + head + struct.pack("<I", value)


def test_a_bmp_with_another_order_of_colours_is_refused(tmp_path):
    usual = with_masks((0xFF0000, 0xFF00, 0xFF, 0xFF000000))
    assert read(tmp_path, usual).tolist() == [[[200, 100, 50]]]
    with pytest.raises(InputError, match="BMP file with another order of colours"):
        read(tmp_path, with_masks((0xFF000000, 0xFF0000, 0xFF00, 0xFF)))
