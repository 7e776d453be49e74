"""Draws which places of two images make their descriptors alike.

    python -m cgd.explain runs/demo-1/trained/last a.jpg b.jpg -o maps.png
    python -m cgd.explain runs/demo-1/trained/last query.jpg first.jpg second.jpg third.jpg -o maps.png
    python -m cgd.explain runs/demo-1/trained/last a.jpg b.jpg --box 10,20,80,60 --box 0,5,90,70 -o maps.png
    python -m cgd.explain runs/demo-1/trained/last a.jpg b.jpg --common demo.npz -o maps.png
    python -m cgd.explain runs/demo-1/trained/last --query a.jpg --index photos-index -k 5 -o maps.png

One row for each B, beside A: both images, the map of the whole descriptor over them, and those of its global
descriptors S, M and G. A map says what each place adds to the cosine similarity: yellow to red for more, blue for less.
It adds up, with what the biases of the Dense layers add, to the similarity; the sums are printed.

Where any two descriptors have a similarity near 1, the maps of an image are the same for any other. --common takes the
descriptors of a data set, and leaves out the direction that they share: the maps then add up to the similarity of the
rest. docs/explain.md explains this. Runs on the CPU.

With --query and --index, the B are the most similar pictures of an index that cgd.describe made with this network, as
cgd.search finds them; and its pictures are the data set of --common.
"""

import argparse
import os
import zipfile

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cgd import search
from cgd.data import flags
from cgd.gallery.pictures import JPEG_SIDE
from cgd.network import descriptions
from cgd.retrieval import index
from cgd.retrieval.recall import nearest
from cgd.system import errors, files
from cgd.system.errors import InputError

SIDE, GAP, LINE, TEXT = 144, 8, 17, 13  # pixels: an image, between images, a line of text, its letters
ROW = SIDE + 2 * LINE + 2 * GAP
IMAGES = (".png", ".jpg", ".jpeg")  # what it can write
NEIGHBOURS = 5
ALIKE = 0.95  # the similarity from which on what two images share drowns what they do not
INK, PALE = (40, 40, 40), (110, 110, 110)


def arguments():
    parser = errors.Parser(
        prog="python -m cgd.explain", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("prefix", metavar="PREFIX", help="the checkpoint: its path up to -symbol.json")
    add("images", metavar="A B", nargs="*", help="image files: A, and one or more B to compare it with")
    add("-o", "--output", required=True, metavar="FILE", help="image to write, such as maps.png or maps.jpg")
    help_ = "crop; give it once for each image, A first (default: whole images)"
    add("--box", type=flags.box, action="append", metavar="X,Y,W,H", help=help_)
    help_ = (
        "leave out what these descriptors share: an index, a file of test.py --save-embeddings, or .npy with (N, dim)"
    )
    add("--common", metavar="FILE or INDEX", help=help_)
    add = parser.add_argument_group("neighbours in an index").add_argument
    add("--query", metavar="A", help="image file; each B is a neighbour of it")
    add("--index", metavar="INDEX", help="folder that cgd.describe wrote")
    add("-k", type=flags.whole(1), metavar="K", help=f"neighbours (default: {NEIGHBOURS})")
    options = parser.parse_intermixed_args()  # flags may stand before the images
    if bool(options.query) != bool(options.index):
        raise InputError("--query and --index: expected both or neither")
    if bool(options.query) == bool(options.images) or len(options.images) == 1:
        raise InputError("expected two or more images, or --query A --index INDEX")
    options.images = options.images or [options.query]
    if options.box and len(options.box) != len(options.images):
        raise InputError(f"--box: {len(options.box)} given for {len(options.images)} images; expected one for each")
    if options.k and not options.index:
        raise InputError("-k: for --query A --index INDEX")
    options.k = options.k or NEIGHBOURS
    files.check_output("-o", options.output, IMAGES, options.images)
    return options


def pictures(paths, crops, size):
    """The images, cropped to their boxes: (H, W, 3), uint8, of `size` (W, H); and small Pillow images, to draw.

    Resized at once, because many photographs as they come from a camera do not fit into the memory.
    """
    from cgd.data import images

    resized, small = [], []
    for path, crop in zip(paths, crops):
        try:
            image = images.crop(images.read_image(path), crop)
        except InputError as error:
            raise InputError(str(error) if str(error).startswith(path) else f"{path}: {error}")
        resized.append(images.resize(image, size).asnumpy())
        small.append(_fitted(Image.fromarray(image.asnumpy())))
    return resized, small


def mean_of(file, prefix):
    """The mean (dim,) of the descriptors of an index, in a file of test.py --save-embeddings, or in an .npy file.

    Raises InputError if the file cannot be read, or the index is not of the network `prefix`.
    """
    if os.path.isdir(file):
        facts, _, vectors = index.read(file)
        if facts["checksum"] != index.checksum(prefix):
            raise InputError(f"--common {file}: an index of another network than {prefix}")
        mean = search.common_of(vectors)
        if not np.isfinite(mean).all():
            raise InputError(f"--common {file}: is damaged: its descriptors are not finite")
        return mean
    try:
        found = np.load(file, mmap_mode="r")
        vectors = found["embeddings"] if hasattr(found, "files") else found
        mean = vectors.mean(axis=0, dtype=np.float64)
        if vectors.ndim != 2 or not 0 < np.linalg.norm(mean) < np.inf:
            raise ValueError(f"an array of shape {vectors.shape} with the mean {mean}")
        return mean
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(f"--common {file}: not a file of test.py --save-embeddings, nor of descriptors ({error})")


def neighbours(options, embedding, facts, items, vectors):
    """Paths and boxes of the items of an index that are most similar to an embedding (dim,), nearest first.

    The embedding is rounded as those of the index are, as cgd.search does it.
    """
    embedding = embedding.astype(facts["stored"]).astype(np.float32)
    try:
        (found,) = nearest(embedding[None], min(options.k, len(vectors)), vectors)
    except ValueError as error:
        raise InputError(f"{options.index}: it is damaged: {error}")
    chosen = [items[number] for number in found]
    return [os.path.join(facts["folder"], item.path) for item in chosen], [item.crop for item in chosen]


def report(names, similarities, maps):
    """The sums in text: two lines for each B, below its similarity with A."""
    lines = []
    for name, similarity, found in zip(names[1:], similarities, maps):
        lines.append(f"{names[0]} and {name}: {_title(similarity, found, 4)}")
        for path, side in ((names[0], found.a), (name, found.b)):
            terms = [f"{letter} {values.sum():.4f}" for letter, values in side.branches.items()]
            total = side.whole.sum() + side.bias
            lines.append(f"  {path}: {' + '.join(terms)} + bias {side.bias:.4f} = {total:.4f}")
    return "\n".join(lines)


def _title(similarity, found, digits):
    rest = f", of the rest {found.similarity:.{digits}f}" if found.similarity != similarity else ""
    return f"similarity {similarity:.{digits}f}{rest}"


def draw(images, similarities, maps):
    """The picture: a row for each B.

    images : small ones, as `pictures` returns them, A first · similarities : of A and each B
    maps : their SimilarityMaps
    """
    from cgd.retrieval.maps import heat, over, scale_of

    letters = list(maps[0].a.branches)
    columns = ["all", *letters] if len(letters) > 1 else ["all"]
    pair = 2 * (SIDE + GAP) + GAP
    sheet = Image.new("RGB", (GAP + pair * (1 + len(columns)), _height(len(maps))), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT)
    for line, (other, similarity, found) in enumerate(zip(images[1:], similarities, maps)):
        y = GAP + line * ROW
        pen.text((GAP, y), _title(similarity, found, 3), INK, font)
        shown = images[0], other
        for place, image in enumerate(shown):
            sheet.paste(image, (GAP + place * (SIDE + GAP), y + LINE))
        for column, name in enumerate(columns, 1):
            x = GAP + column * pair
            values = [side.whole if name == "all" else side.branches[name] for side in (found.a, found.b)]
            scale = scale_of(*values)
            pen.text((x, y), f"{name}: full colour {scale:.2g}", INK, font)
            for place, (image, side) in enumerate(zip(shown, (found.a, found.b))):
                left, text = x + place * (SIDE + GAP), f"sum {values[place].sum():.3f}"
                sheet.paste(over(image, values[place], scale), (left, y + LINE))
                if name == "all":
                    text += f", bias {side.bias:.3f}"
                pen.text((left, y + LINE + SIDE), text, PALE, font)
    y = sheet.height - LINE - 2
    key = heat(np.linspace(-1, 1, SIDE)[None], 1, (SIDE, LINE - 5))
    pen.text((GAP, y), "lowers the similarity", PALE, font)
    x = GAP + int(pen.textlength("lowers the similarity", font)) + GAP
    sheet.paste(key, (x, y + 3), key)
    pen.text((x + SIDE + GAP, y), "raises it", PALE, font)
    return sheet


def _height(rows):
    return GAP + ROW * rows + LINE


def check_height(rows, output):
    """Raises InputError if a JPEG file cannot hold so many rows."""
    if _height(rows) > JPEG_SIDE and not output.endswith(".png"):
        raise InputError(f"-o {output}: JPEG has no room for {rows} rows; expected a name that ends with .png")


def _fitted(image):
    """The image scaled to fit into a square of SIDE pixels."""
    scale = SIDE / max(image.size)
    return image.resize([max(1, round(scale * length)) for length in image.size], Image.BILINEAR)


def main():
    options = arguments()
    description = descriptions.read(options.prefix)  # so that a wrong name is reported at once
    common = mean_of(options.common, options.prefix) if options.common else None
    if options.index:
        indexed = facts, _, vectors = index.read(options.index)
        if descriptions.is_onnx(facts["name"]):
            hint = "describe the pictures with a checkpoint, into another folder"
            raise InputError(f"--index {options.index}: was described by {facts['name']}, which has no maps; {hint}")
        search.network_of(options, facts, "as PREFIX")  # which raises InputError if it is another one
        if facts["dtype"] == "bfloat16":
            errors.say("note: the index is in bfloat16, the maps in float32: cgd.search may find other neighbours")
        common = search.common_of(vectors) if common is None else common
    check_height(min(options.k, len(vectors)) if options.index else len(options.images) - 1, options.output)

    # Not before: these import MXNet, which takes far longer than all the above.
    from cgd.network.checkpoints import Checkpoint
    from cgd.retrieval.maps import PlaceVectors, similarity_maps, without
    from cgd.system.environment import memory_for, mx

    paths, boxes = options.images, options.box or [None] * len(options.images)
    size = description["image_width"], description["image_height"]
    images, small = pictures(paths, boxes, size)
    if description["cropped"] and not options.box:
        errors.say("note: this network was trained on cropped images; --box crops these")
    with memory_for("give fewer images"):
        describe = PlaceVectors(Checkpoint(options.prefix), mx.cpu())
        places = describe(images)
        if options.index:
            more, boxes = neighbours(options, places[0].embedding, *indexed)
            files.check_output("-o", options.output, IMAGES, more)
            found, more_small = pictures(more, boxes, size)
            paths, small, places = paths + more, small + more_small, places + describe(found)
    similarities = [float(places[0].embedding @ other.embedding) for other in places[1:]]
    if common is not None:
        dim = len(places[0].embedding)
        if len(common) != dim:
            raise InputError(
                f"--common {options.common}: {len(common)} dimensions; those of {options.prefix} are {dim}"
            )
        places = [without(each, common) for each in places]
    elif min(similarities) > ALIKE:
        errors.say("note: where all descriptors are this alike, the maps say little; --common shows what differs")
    maps = [similarity_maps(places[0], other) for other in places[1:]]
    print(report(paths, similarities, maps))
    with files.replacing(options.output) as part:
        draw(small, similarities, maps).save(str(part), quality=90)
    print(f"written: {options.output}")


if __name__ == "__main__":
    errors.run(main)
