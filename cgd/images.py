"""From records to batches: reading, cropping, the training and the test view, loader processes.

Reading and resizing are MXNet's own OpenCV calls, as in the authors' evaluation code: another library's bilinear
resize gives other pixels, and the published figures depend on them.
"""

from pathlib import Path

import numpy as np

from cgd.environment import mx
from cgd.errors import InputError

BILINEAR = 1  # OpenCV's number for it


def read_image(path):
    """The picture as an NDArray (H, W, 3), uint8, RGB. Raises InputError that names a file that cannot be decoded."""
    try:
        image = mx.image.imdecode(Path(path).read_bytes())
        image.wait_to_read()  # decoding is asynchronous, and so would be its error
    except OSError as error:
        raise InputError("{}: {}".format(path, error.strerror))
    except (mx.base.MXNetError, ValueError):
        raise InputError("{}: not a picture that can be decoded".format(path))
    return image


def crop(image, box):
    """The box (x, y, w, h) of an image (H, W, 3), cut off at the image's border; the whole image for None."""
    if box is None:
        return image
    x, y, w, h = box
    height, width = image.shape[:2]
    if x < 0 or y < 0 or x >= width or y >= height:
        raise InputError("the box {} begins outside the picture of {} x {}".format(box, width, height))
    return image[y : min(y + h, height), x : min(x + w, width)]


def resize(image, size):
    """The image (H, W, 3) at a size (width, height); its aspect ratio is not kept."""
    return mx.image.imresize(image, size[0], size[1], interp=BILINEAR)


def normalise(batch, mean, std):
    """Pictures (N, H, W, 3), uint8 -> the network's input (N, 3, H, W), float32: x / 255, minus mean, over std."""
    return mx.nd.image.normalize(mx.nd.image.to_tensor(batch), mean, std)


class TestView(mx.gluon.data.Dataset):
    """index -> (picture (H, W, 3) uint8, identity): cropped to its box and resized to `size` (width, height)."""

    def __init__(self, records, size):
        self.records, self.size = records, size

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        record = self.records[index]
        return resize(_cropped(record), self.size).asnumpy(), record.identity


class TrainingView(mx.gluon.data.Dataset):
    """(index, seed) -> (picture (H, W, 3) uint8, identity), augmented.

    Cropped to its box and resized to `enlarged` (width, height); of that a random piece of `size`, flipped with
    probability 1/2. What is random is drawn from `seed` alone, so that it is the same whichever process does it.
    """

    def __init__(self, records, size, enlarged):
        self.records, self.size, self.enlarged = records, size, enlarged

    def __len__(self):
        return len(self.records)

    def __getitem__(self, key):
        index, seed = key
        record = self.records[index]
        random = np.random.RandomState(seed)
        image = resize(_cropped(record), self.enlarged).asnumpy()
        x, y = (random.randint(big - small + 1) for big, small in zip(self.enlarged, self.size))
        image = image[y : y + self.size[1], x : x + self.size[0]]
        return image[:, ::-1] if random.randint(2) else image, record.identity


def _cropped(record):
    try:
        return crop(read_image(record.path), record.box)
    except InputError as error:
        # the box's error does not know the file's name
        raise error if str(record.path) in str(error) else InputError("{}: {}".format(record.path, error))


def loader(view, batches, num_workers):
    """Iterates over (pictures (N, H, W, 3) uint8 NDArray, identities (N,) int array), one for each list in `batches`.

    `num_workers` processes decode ahead; 0 decodes in this process.
    """
    stack = _stack_shared if num_workers else _stack
    return mx.gluon.data.DataLoader(view, batch_sampler=batches, batchify_fn=stack, num_workers=num_workers)


def test_batches(count, batch_size):
    """The indices 0 to count - 1 in order, in lists of `batch_size`; the last may be shorter."""
    return [list(range(start, min(start + batch_size, count))) for start in range(0, count, batch_size)]


def _stack(samples):
    pictures, identities = zip(*samples)
    return mx.nd.array(np.stack(pictures), dtype="uint8"), np.array(identities)


def _stack_shared(samples):
    """As `_stack`, in memory that the main process sees too: nothing is copied between the processes."""
    pictures, identities = zip(*samples)
    shared = mx.nd.array(np.stack(pictures), dtype="uint8", ctx=mx.Context("cpu_shared", 0))
    return shared, np.array(identities)
