"""Draws queries and their nearest neighbours.

python test.py --pretrained-model=runs/demo-MG-1/last --save-embeddings=demo.npz
python -m cgd.gallery.sheet demo.npz neighbours.png
"""

import zipfile

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cgd.data import flags
from cgd.gallery.pictures import JPEG_SIDE
from cgd.retrieval.recall import nearest, nearest_others
from cgd.system import errors, files
from cgd.system.errors import InputError

SIDE, GAP, FRAME = 96, 8, 4
INK, RIGHT, WRONG = (40, 40, 40), (34, 139, 76), (200, 52, 44)


def neighbours(saved, file, queries=8, k=8, seed=0):
    """Draws random queries, one per row, and their k nearest neighbours: correct ones ticked, wrong ones crossed.

    saved : {name: array}, the file that test.py --save-embeddings writes
    file : path of the image
    queries, k : number of queries and of neighbours
    seed : seed of the choice of queries
    """
    identities, paths, in_gallery = saved["identities"], saved["paths"], saved["gallery"]
    boxes = [tuple(box) if box[2] else None for box in saved["boxes"].tolist()]
    query_vectors, gallery = saved["embeddings"][~in_gallery], saved["embeddings"][in_gallery]
    count = len(query_vectors)
    if count + len(gallery) < 2:
        raise InputError("a single picture has no neighbours; expected two or more")
    rows = np.sort(np.random.RandomState(seed).permutation(count)[:queries])
    most = len(gallery) if len(gallery) else count - 1
    width, height = (min(k, most) + 1) * (SIDE + GAP) + 3 * GAP, len(rows) * (SIDE + GAP) + 4 * GAP
    if max(width, height) > JPEG_SIDE and not file.endswith(".png"):
        raise InputError(f"{file}: JPEG has no room for {width} x {height} pixels; expected a name that ends with .png")
    if len(gallery):
        found = nearest(query_vectors[rows], min(k, most), gallery) + count  # the gallery follows the queries
    else:
        found, _ = nearest_others(query_vectors[rows], rows, k, query_vectors)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    draw.text((GAP, GAP), "query", INK, font)
    draw.text((SIDE + 4 * GAP, GAP), "its nearest neighbours, nearest first", INK, font)
    for line, (query, items) in enumerate(zip(rows, found)):
        y = line * (SIDE + GAP) + 4 * GAP
        sheet.paste(_thumbnail(paths[query], boxes[query]), (GAP, y))
        for column, item in enumerate(items, 1):
            x = column * (SIDE + GAP) + 3 * GAP
            sheet.paste(_thumbnail(paths[item], boxes[item]), (x, y))
            _mark(draw, x, y, identities[item] == identities[query])
    with files.replacing(file) as part:
        sheet.save(str(part))


def _thumbnail(path, box):
    from cgd.data import images  # not before: it imports MXNet, which takes far longer than the rest

    image = images.crop(images.read_image(path), box).asnumpy()  # as the network has seen it
    return Image.fromarray(image).resize((SIDE, SIDE), Image.BILINEAR)


def _mark(draw, x, y, correct):
    """A coloured frame, with a tick or a cross for colour-blind readers."""
    colour = RIGHT if correct else WRONG
    draw.rectangle((x, y, x + SIDE - 1, y + SIDE - 1), outline=colour, width=FRAME)
    corner = x + SIDE - 20, y + SIDE - 20
    draw.rectangle((*corner, x + SIDE - 1, y + SIDE - 1), fill=colour)
    strokes = [[(4, 10), (8, 15), (16, 5)]] if correct else [[(5, 5), (15, 15)], [(15, 5), (5, 15)]]
    for stroke in strokes:
        draw.line([(corner[0] + a, corner[1] + b) for a, b in stroke], fill="white", width=3)


def main():
    parser = errors.Parser(description="Draw random queries and their nearest neighbours.")
    parser.add_argument("embeddings", metavar="EMBEDDINGS.npz", help="file written by test.py --save-embeddings")
    parser.add_argument("image", metavar="OUT.png", help="image to write")
    parser.add_argument(
        "--queries", type=flags.whole(1), default=8, metavar="N", help="number of random queries (default: 8)"
    )
    parser.add_argument(
        "--neighbours", type=flags.whole(1), default=8, metavar="K", help="neighbours per query (default: 8)"
    )
    parser.add_argument("--seed", type=flags.whole(0), default=0, help="seed of the choice of queries (default: 0)")
    options = parser.parse_args()
    names = ("embeddings", "identities", "paths", "boxes", "gallery")
    try:
        with np.load(options.embeddings) as archive:
            saved = {name: archive[name] for name in names}
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(f"{options.embeddings}: not a file written by test.py --save-embeddings ({error})")
    files.check_output("OUT.png", options.image, (".png", ".jpg", ".jpeg"), saved["paths"].tolist())
    if not np.isfinite(saved["embeddings"]).all():
        raise InputError(f"{options.embeddings}: its embeddings are not finite")
    neighbours(saved, options.image, options.queries, options.neighbours, options.seed)
    print(f"saved: {options.image}")


if __name__ == "__main__":
    errors.run(main)
