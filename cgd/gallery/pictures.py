"""The pictures of a page: thumbnails stored in it, or addresses of the files."""

import base64
import io
import os
from urllib.parse import quote

from PIL import Image

SIDE = 128  # pixels, the longer side of a thumbnail
QUALITY = 75  # of JPEG
JPEG_SIDE = 65500  # pixels, of libjpeg at most

BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises for broken files


def thumbnail(path, box):
    """A picture, cropped to its box and at most SIDE pixels wide and high: ((width, height), base64 of its JPEG file).

    Rotation by EXIF is ignored, as it is for the network. Returns ((SIDE, SIDE), "") if the file cannot be read.
    """
    try:
        with Image.open(path) as image:
            whole = image.size
            if box is None:
                image.draft("RGB", (2 * SIDE, 2 * SIDE))  # decodes a large JPEG file at a fraction of its size
            if image.mode.startswith("I"):  # 16 bits, which `convert` would clip
                image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
            image.info.pop("transparency", None)  # of a palette: `convert` would drop it, too, but with a warning
            image = image.convert("RGB")
        if box is not None:
            x, y, w, h = _inside(box, whole)
            image = image.crop((x, y, x + w, y + h))
        image.thumbnail((SIDE, SIDE), Image.BICUBIC)
        file = io.BytesIO()
        image.save(file, "jpeg", quality=QUALITY, optimize=True)
    except BROKEN:
        return (SIDE, SIDE), ""
    return image.size, base64.b64encode(file.getvalue()).decode()


def link(path, box, folder):
    """The address of a picture, relative to the page's folder, and what to show: (size, [address, W, H, x, y]).

    size : (width, height) of the box, or of the whole picture · W, H : of the whole picture · x, y : the box's corner

    Returns ((SIDE, SIDE), None) if the file cannot be read.
    """
    try:
        with Image.open(path) as image:
            whole = image.size
        x, y, w, h = _inside(box or (0, 0, *whole), whole)
    except BROKEN:
        return (SIDE, SIDE), None
    relative = os.path.relpath(os.path.abspath(path), os.path.abspath(folder))
    return (w, h), ["./" + quote(os.fsencode(relative)), *whole, x, y]  # "./", for a name such as a:b.jpg


def _inside(box, size):
    """The part of a box (x, y, w, h) that lies in a picture of this size. Raises ValueError if there is none."""
    x, y, w, h = map(int, box)
    w, h = min(w, size[0] - x), min(h, size[1] - y)
    if min(x, y) < 0 or min(w, h) < 1:
        raise ValueError(f"the box {box} starts outside the picture")
    return x, y, w, h
