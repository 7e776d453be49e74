"""Reading, cropping, resizing and normalising images; preprocessing for training and for evaluation.

Images are decoded and resized by MXNet's OpenCV functions, as in the authors' evaluation code. Bilinear resizing
differs between libraries, and the published results depend on it.
"""

import io
import os
import struct
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from cgd.system.environment import mx
from cgd.system.errors import InputError

BILINEAR = 1  # cv2.INTER_LINEAR
JPEG, PNG, BMP = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM"  # magic numbers
SCAN, END = b"\xff\xda", b"\xff\xd9"  # JPEG markers: start of scan, end of image
MASKED = (3, 6)  # compression of a BMP whose header says where in a pixel each colour is
BGR_MASKS = struct.pack("<III", 0xFF0000, 0xFF00, 0xFF)  # the usual places

# Pillow refuses images with more than twice as many pixels. Its own limit is below the 200 megapixels of some phones.
# There must be one: a broken header can ask for any amount of memory.
Image.MAX_IMAGE_PIXELS = 2**28
# Pillow also refuses a PNG file with a text or colour profile above 1 MB; of all texts together, it allows this much.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY


def read_image(path):
    """Reads a JPEG, PNG or BMP file as an NDArray (H, W, 3), uint8, RGB.

    As in the authors' evaluation code, greyscale, palette, CMYK and 16-bit images are converted to 8-bit RGB, the alpha
    channel is dropped, and EXIF orientation is ignored.
    Raises InputError, naming the file, if it is missing, of another format, truncated, or a JPEG or PNG of more than
    536 megapixels.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for, a device may have no end
            raise OSError("is no file")
        data = Path(path).read_bytes()
        _check(data)
        image = mx.image.imdecode(data)
        image.wait_to_read()  # decoding is asynchronous, errors are raised here
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}")
    except (mx.base.MXNetError, ValueError, Image.DecompressionBombError) as error:
        reason = "cannot be decoded" if isinstance(error, mx.base.MXNetError) else error
        raise InputError(f"{path}: {reason}")
    return image


def _check(data):
    """Raises ValueError or OSError for an image of which OpenCV would make arbitrary pixels or wrong colours."""
    if data.startswith(JPEG):
        try:
            image = Image.open(io.BytesIO(data))  # reads the header; OpenCV may return garbage for a truncated one
        except UnidentifiedImageError:  # its text has an address, so that a file would count again at each reading
            raise ValueError("broken JPEG file")
        except SyntaxError as error:
            raise ValueError(f"broken JPEG file ({error})")
        if not image.tile:  # Pillow has found no image data
            raise ValueError("truncated JPEG file")
        # Neither marker can occur within the image data. Some files lack only the last marker, or have data of their
        # own behind it: Pillow decides. It would decode the zeros that an interrupted download has reserved.
        if data.rfind(END) < data.rfind(SCAN):
            Image.open(io.BytesIO(data.rstrip(b"\0"))).load()
    elif data.startswith(PNG):
        try:
            Image.open(io.BytesIO(data)).verify()  # checks the checksums without decoding
        except Image.DecompressionBombError:
            raise
        except Exception as error:  # Pillow raises SyntaxError and others
            raise ValueError(f"corrupt PNG file ({error})")
    elif data.startswith(BMP):
        bits, compression = struct.unpack_from("<HI", data, 28) if len(data) >= 34 else (0, 0)
        if bits == 32 and compression in MASKED and data[54:66] != BGR_MASKS:
            raise ValueError("BMP file with another order of colours, which OpenCV ignores; save it as PNG")
    else:
        raise ValueError("expected a JPEG, PNG or BMP image" if data else "empty file")


def crop(image, box):
    """Crops an image (H, W, 3) to the box (x, y, w, h), clipped to the image; returns the image if `box` is None.

    Raises InputError if the box's top left corner lies outside the image.
    """
    if box is None:
        return image
    x, y, w, h = box
    height, width = image.shape[:2]
    if x < 0 or y < 0 or x >= width or y >= height:
        raise InputError(f"the box {box} starts outside the image of {width} x {height} pixels")
    return image[y : min(y + h, height), x : min(x + w, width)]


def resize(image, size):
    """Resizes an image (H, W, 3) to `size` (width, height); the aspect ratio is not kept."""
    return mx.image.imresize(image, size[0], size[1], interp=BILINEAR)


def normalise(batch, mean, std):
    """Images (N, H, W, 3), uint8 -> network input (N, 3, H, W), float32: (x / 255 - mean) / std for each channel."""
    return mx.nd.image.normalize(mx.nd.image.to_tensor(batch), mean, std)


class View:
    """Base class: maps a key to (image (H, W, 3) uint8, identity, None).

    If the image cannot be read, returns (a black image, identity, the error message).
    """

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
    """Preprocessing for evaluation, by index: crops to the box and resizes to `size` (width, height)."""

    def index(self, key):
        return key

    def picture(self, record, key):
        return resize(_cropped(record), self.size).asnumpy()


class TrainingView(View):
    """Preprocessing for training, by (index, seed), with random augmentation.

    Crops to the box, resizes to `resized` (width, height), takes a random crop of `size`, and flips it horizontally
    with probability 1/2. With probability `direct_resize_prob` it resizes directly to `size`, without a random crop, as
    later code of the authors' group does. All random numbers depend on `seed` alone, not on the process.
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
    except InputError as error:  # it lacks the file name
        raise InputError(f"{record.path}: {error}")


def eval_batches(count, batch_size):
    """The indices 0 to count - 1 in order, as lists of `batch_size`; the last list may be shorter."""
    return [list(range(start, min(start + batch_size, count))) for start in range(0, count, batch_size)]
