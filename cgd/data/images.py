"""From records to pictures: reading, cropping, resizing, the training and the test view.

Reading and resizing are MXNet's own OpenCV calls, as in the authors' evaluation code: another library's bilinear
resize gives other pixels, and the published figures depend on them.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from cgd.system.environment import mx
from cgd.system.errors import InputError

BILINEAR = 1  # OpenCV's number for it
JPEG, PNG, BMP = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM"  # what such files begin with
SCAN, END = b"\xff\xda", b"\xff\xd9"  # JPEG's marks before a picture's pixels, and after them


def read_image(path):
    """The picture of a JPEG, PNG or BMP file as an NDArray (H, W, 3), uint8, RGB.

    As the authors' evaluation code reads it: grey, palette, CMYK and 16-bit pictures become RGB of 8 bits,
    transparency is dropped, and the camera's note how the picture should be turned (EXIF) is left alone.
    Raises InputError that names a file that is missing, of another kind, or not whole.
    """
    try:
        data = Path(path).read_bytes()
        _check_whole(data)
        image = mx.image.imdecode(data)
        image.wait_to_read()  # decoding is asynchronous, and so would be its error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}")
    except (mx.base.MXNetError, ValueError) as error:
        reason = "cannot be decoded" if isinstance(error, mx.base.MXNetError) else error
        raise InputError(f"{path}: {reason}")
    return image


def _check_whole(data):
    """Raises ValueError or OSError for a picture that is cut off: OpenCV would fill what is missing with anything."""
    if data.startswith(JPEG):
        # Neither mark can occur among pixels. Some files lack the last mark and nothing else: Pillow decides.
        if data.rfind(END) < data.rfind(SCAN):
            Image.open(io.BytesIO(data)).load()
    elif data.startswith(PNG):
        try:
            Image.open(io.BytesIO(data)).verify()  # the checksums, not the pixels
        except Exception as error:  # Pillow raises SyntaxError and others
            raise ValueError(f"broken PNG file ({error})")
    elif not data.startswith(BMP):
        raise ValueError("expected a JPEG, PNG or BMP picture" if data else "empty file")


def crop(image, box):
    """The box (x, y, w, h) of an image (H, W, 3), cut off at the image's border; the whole image for None."""
    if box is None:
        return image
    x, y, w, h = box
    height, width = image.shape[:2]
    if x < 0 or y < 0 or x >= width or y >= height:
        raise InputError(f"the box {box} begins outside the picture of {width} x {height}")
    return image[y : min(y + h, height), x : min(x + w, width)]


def resize(image, size):
    """The image (H, W, 3) at a size (width, height); its aspect ratio is not kept."""
    return mx.image.imresize(image, size[0], size[1], interp=BILINEAR)


def normalise(batch, mean, std):
    """Pictures (N, H, W, 3), uint8 -> the network's input (N, 3, H, W), float32: x / 255, minus mean, over std."""
    return mx.nd.image.normalize(mx.nd.image.to_tensor(batch), mean, std)


class View:
    """key -> (picture (H, W, 3) uint8, identity, None), or (black, identity, why the picture cannot be read)."""

    def __init__(self, records, size):
        self.records, self.size = records, size

    def __len__(self):
        return len(self.records)

    def __getitem__(self, key):
        record = self.records[self.index(key)]
        try:
            return self.picture(record, key), record.identity, None
        except InputError as error:
            return np.zeros((self.size[1], self.size[0], 3), np.uint8), record.identity, str(error)


class EvalView(View):
    """index -> picture: cropped to its box and resized to `size` (width, height)."""

    def index(self, key):
        return key

    def picture(self, record, key):
        return resize(_cropped(record), self.size).asnumpy()


class TrainingView(View):
    """(index, seed) -> picture, augmented.

    Cropped to its box and resized to `resized` (width, height); of that a random crop of `size`, flipped with
    probability 1/2. With `direct_resize_prob` it is resized to `size` instead, as later code of the authors'
    group does. What is random is drawn from `seed` alone, so that it is the same whichever process does it.
    """

    def __init__(self, records, size, resized, direct_resize_prob=0.0):
        super().__init__(records, size)
        self.resized, self.direct_resize_prob = resized, direct_resize_prob

    def index(self, key):
        return key[0]

    def picture(self, record, key):
        random = np.random.RandomState(key[1])
        direct = self.direct_resize_prob and random.random_sample() < self.direct_resize_prob
        resized = self.size if direct else self.resized
        image = resize(_cropped(record), resized).asnumpy()
        x, y = (random.randint(big - small + 1) for big, small in zip(resized, self.size))
        image = image[y : y + self.size[1], x : x + self.size[0]]
        return image[:, ::-1] if random.randint(2) else image


def _cropped(record):
    image = read_image(record.path)
    try:
        return crop(image, record.box)
    except InputError as error:  # which does not know the file's name
        raise InputError(f"{record.path}: {error}")


def eval_batches(count, batch_size):
    """The indices 0 to count - 1 in order, in lists of `batch_size`; the last may be shorter."""
    return [list(range(start, min(start + batch_size, count))) for start in range(0, count, batch_size)]
