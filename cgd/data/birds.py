"""Draws the demo data set: invented birds in the folder layout of CUB-200-2011.

A class is a species of bird. The colours and shapes of its parts, its crest and its markings are the same in all of its
images. Pose, size, light, background, other birds and occluding plants are random in every image, so that images of a
species can only be retrieved by the features of the species.

Polygons use the bird's own coordinates (x to the right, the direction it looks in; y down; body length 1) until the
bird is placed on the canvas.

    python -m cgd.data.birds --data-dir ./data/demo
"""

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from cgd.system import errors
from cgd.system.errors import InputError

DRAWING = 1  # version of the images; increase it when they change, so that folders of older versions are refused

# All species share these colours, so that the overall colour of an image carries little information.
COLOURS = {
    "Crimson": (188, 46, 48),
    "Amber": (226, 140, 44),
    "Lemon": (232, 208, 82),
    "Moss": (92, 136, 62),
    "Azure": (62, 122, 190),
    "Violet": (124, 84, 160),
    "Umber": (124, 84, 56),
    "Ivory": (236, 228, 208),
    "Slate": (70, 76, 88),
}
BEAKS = ((54, 50, 52), (232, 150, 52), (206, 190, 158), (190, 66, 54))
# Background colours, top and bottom: morning, wood, meadow, autumn, dusk, lake, blossom, snow, thicket.
SCENES = (
    ((164, 202, 228), (234, 226, 198)),
    ((54, 92, 62), (140, 168, 100)),
    ((150, 194, 226), (118, 158, 70)),
    ((220, 160, 92), (136, 92, 58)),
    ((92, 78, 132), (230, 150, 116)),
    ((84, 134, 158), (172, 206, 206)),
    ((238, 196, 208), (184, 212, 226)),
    ((226, 232, 238), (158, 174, 194)),
    ((46, 54, 66), (92, 104, 94)),
)
LEAVES = ((84, 128, 58), (130, 150, 66), (52, 92, 66), (196, 112, 48), (214, 172, 72), (226, 158, 176), (96, 74, 62))

# Shape of a bird with a trunk of length 1: height and tilt (degrees) of the trunk, radius of the head, length of the
# neck, length and height of the beak and drop of its tip, length, half width and fork depth of the tail, leg length.
SHAPE = ("plump", "upright", "head", "neck", "beak", "depth", "hook", "tail", "spread", "fork", "leg")
FAMILIES = {
    "Finch": (0.74, 32, 0.27, 0.02, 0.17, 0.17, 0.02, 0.34, 0.08, 0.05, 0.16),
    "Warbler": (0.62, 28, 0.24, 0.03, 0.17, 0.07, 0.00, 0.38, 0.07, 0.03, 0.20),
    "Jay": (0.60, 36, 0.26, 0.06, 0.24, 0.11, 0.02, 0.62, 0.10, -0.06, 0.18),
    "Wren": (0.82, 12, 0.27, 0.00, 0.20, 0.06, 0.04, 0.28, 0.10, -0.04, 0.18),
    "Swift": (0.50, 14, 0.22, 0.00, 0.10, 0.08, 0.03, 0.60, 0.17, 0.30, 0.08),
    "Parrot": (0.66, 52, 0.28, 0.02, 0.17, 0.20, 0.12, 0.72, 0.07, -0.12, 0.10),
    "Wader": (0.58, 16, 0.20, 0.26, 0.46, 0.06, 0.03, 0.20, 0.08, -0.03, 0.46),
    "Heron": (0.52, 40, 0.17, 0.42, 0.36, 0.08, 0.00, 0.20, 0.07, -0.03, 0.46),
    "Sunbird": (0.60, 40, 0.23, 0.04, 0.38, 0.05, 0.12, 0.30, 0.06, 0.06, 0.10),
    "Duck": (0.64, 4, 0.23, 0.16, 0.25, 0.10, -0.03, 0.20, 0.09, -0.05, 0.10),
}


def draw_demo(folder, classes=100, images_per_class=24, seed=0, progress=iter):
    """Draws a data set of invented birds into `folder`, in the layout of CUB-200-2011.

    folder : folder of the data set; parent folders are created. If it was drawn before with the same arguments, it is
        kept. It is renamed into place after the last image, so an incomplete data set is never left there
    classes, images_per_class : number of species (at most 999) and of images of each
    seed : seed of the random species and images
    progress : function that wraps the iterable of classes, such as `tqdm.tqdm`

    Writes images/<class>/<image>.jpg (RGB, sides of 128 to 168 pixels), images.txt, image_class_labels.txt,
    classes.txt and bounding_boxes.txt (id, left, top, width, height in pixels). Image and class ids start at 1.
    Returns the folder as a Path. Raises InputError if `folder` exists with other contents.
    """
    folder = Path(folder)
    version = f"drawing {DRAWING}: {classes} classes of {images_per_class} pictures, seed {seed}\n"
    if folder.exists():
        return _check_drawn(folder, version)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Drawn next to the target and renamed, so that an interrupted run leaves no partial data set.
    with tempfile.TemporaryDirectory(dir=str(folder.parent), prefix=folder.name + ".") as temporary:
        complete = Path(temporary) / folder.name
        _draw_classes(complete, classes, images_per_class, seed, progress)
        (complete / "drawn.txt").write_text(version)
        try:
            complete.rename(folder)
        except OSError:
            if not folder.exists():
                raise
    return _check_drawn(folder, version)  # another process may have drawn it meanwhile


def check_version(folder):
    """Raises InputError if a folder holds the images of another version; not if nothing says which they are."""
    file = Path(folder) / "drawn.txt"
    if file.is_file() and not file.read_text().startswith(f"drawing {DRAWING}:"):
        raise InputError(f"{folder}: drawn by another version of the program; delete it, and it will be drawn anew")


def _check_drawn(folder, version):
    if not (folder / "drawn.txt").is_file() or (folder / "drawn.txt").read_text() != version:
        raise InputError(f"{folder}: exists, but does not contain {version.strip()}; delete it or choose another")
    return folder


def _draw_classes(folder, classes, images_per_class, seed, progress):
    lists = {"images": [], "image_class_labels": [], "bounding_boxes": [], "classes": []}
    looks = [_look(np.random.RandomState([seed, label, 0])) for label in range(1, classes + 1)]
    for label in progress(range(1, classes + 1)):
        species = looks[label - 1]["name"]
        name = f"{label:03d}.{species}"
        lists["classes"].append(f"{label} {name}")
        (folder / "images" / name).mkdir(parents=True)
        for index in range(1, images_per_class + 1):
            image, box = _draw_image(np.random.RandomState([seed, label, index]), looks, label - 1)
            path = f"{name}/{species}_{index:04d}.jpg"
            image.save(str(folder / "images" / path), quality=88)
            number = len(lists["images"]) + 1
            lists["images"].append(f"{number} {path}")
            lists["image_class_labels"].append(f"{number} {label}")
            lists["bounding_boxes"].append("{} {:.1f} {:.1f} {:.1f} {:.1f}".format(number, *box))
    for name, lines in lists.items():
        (folder / (name + ".txt")).write_text("\n".join(lines) + "\n")


# The features of a species.


def _look(rng):
    """The features that all images of a species share, as a dict."""
    family = sorted(FAMILIES)[rng.randint(len(FAMILIES))]
    look = dict(zip(SHAPE, np.array(FAMILIES[family]) * rng.uniform(0.88, 1.12, len(SHAPE))))
    names = [sorted(COLOURS)[i] for i in rng.permutation(len(COLOURS))]
    parts = dict(zip(("back", "belly", "hood", "cap", "wing", "bars", "mark"), names))
    parts["train"] = parts[("back", "wing", "mark")[rng.randint(3)]]
    parts["ring"] = (parts["hood"], "Ivory", "Amber")[rng.randint(3)]
    look.update((part, np.array(COLOURS[colour])) for part, colour in parts.items())
    look["bill"] = np.array(BEAKS[rng.randint(len(BEAKS))])
    look["breast"] = ("plain", "spotted", "streaked", "banded")[rng.randint(4)]
    look["wing_bars"] = rng.randint(4)
    look["crest"] = ("none", "none", "swept", "spiky")[rng.randint(4)]
    look["mask"] = rng.rand() < 0.4
    look["tail_tip"] = rng.rand() < 0.5
    crown = "capped" if look["crest"] == "none" else "crested"
    look["name"] = "_".join((parts["cap"], crown, parts["back"], family))
    return look


# Shapes: arrays of points (n, 2).


def _turned(points, degrees, pivot=(0.0, 0.0)):
    """Rotates points about the pivot; positive angles raise points to its right."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return (np.asarray(points, float) - pivot) @ np.array([[cos, -sin], [sin, cos]]) + pivot


def _rounded(points):
    """Smooths a closed outline: three rounds of Chaikin's corner cutting."""
    points = np.asarray(points, float)
    for _ in range(3):
        ahead = np.concatenate([points[1:], points[:1]])
        points = np.stack([0.75 * points + 0.25 * ahead, 0.25 * points + 0.75 * ahead], 1).reshape(-1, 2)
    return points


def _arc(start, stop):
    """Points of the unit circle between two angles (degrees, clockwise from the right)."""
    angles = np.radians(np.linspace(start, stop, 25))
    return np.stack([np.cos(angles), np.sin(angles)], 1)


CIRCLE = _arc(0, 360)
CROWN = _arc(-195, -15)
LEAF = _rounded([(-1, 0), (0, -0.6), (1, 0), (0, 0.6)])


def _stroke(start, stop, width):
    """A straight line with a width, as a rectangle."""
    (x, y), (to_x, to_y) = start, stop
    half = width / 2 / np.hypot(to_x - x, to_y - y)
    i, j = (y - to_y) * half, (to_x - x) * half
    return np.array([(x + i, y + j), (to_x + i, to_y + j), (to_x - i, to_y - j), (x - i, y - j)])


def _egg(plump, start=0, stop=360):
    """The outline of the trunk between two angles (degrees, clockwise from the breast), wider at the breast."""
    unit = _arc(start, stop)
    return unit * (0.5, 0.5 * plump) * np.stack([np.ones(25), 1 + 0.18 * unit[:, 0]], 1)


def _moved(parts, move):
    """Applies `move` to the points of all parts, in one call for speed."""
    points = move(np.concatenate([points for points, _ in parts]))
    ends = np.cumsum([len(points) for points, _ in parts])
    return [(points[end - len(part) : end], colour) for end, (part, colour) in zip(ends, parts)]


# The parts of a bird: lists of (points, colour), drawn in this order.


def _bird(look, rng):
    """A bird in a random pose."""
    upright = look["upright"] + rng.uniform(-14, 14)
    raised = rng.uniform(-75, -30) if rng.rand() < 0.4 else rng.uniform(-12, 12)
    trunk = _tail(look, rng.uniform(-18, 18)) + _trunk(look)
    trunk = _moved(trunk, lambda points: _turned(points, upright))
    wing = _moved(_wing(look), lambda points: _turned(_turned(points, raised, (0.20, -0.06)), upright))
    throat = _turned([(0.36, -0.10 * look["plump"])], upright)[0]
    return _legs(look) + trunk + _head(look, throat, rng.uniform(-25, 25)) + wing


def _legs(look):
    parts = []
    for hip in (-0.06, 0.08):
        foot = np.array((hip + 0.02, 0.5 * look["plump"] + look["leg"]))
        parts.append((_stroke((hip, 0.5 * look["plump"] - 0.10), foot, 0.035), look["bill"] * 0.9))
        parts.append((_stroke(foot - (0.07, 0), foot + (0.11, 0), 0.035), look["bill"] * 0.9))
    return parts


def _tail(look, degrees):
    end, spread, fork = -0.42 - look["tail"], look["spread"], look["fork"]
    fan = np.array([(-0.34, -0.08), (end, -spread), (end + fork, 0.0), (end, spread), (-0.34, 0.08)])
    parts = [(fan, look["train"])]
    if look["tail_tip"]:
        band = np.concatenate([fan[1:4], (fan[3:0:-1] * (1, 0.9)) + (0.35 * look["tail"], 0)])
        parts.append((band, look["bars"]))
    return _moved(parts, lambda points: _turned(points, degrees, (-0.4, 0.0)))


def _trunk(look):
    plump = look["plump"]
    under = _egg(plump * 0.96, -8, 165) * 0.97
    parts = [(_egg(plump), look["back"]), (under, look["belly"])]
    parts += _breast(look["breast"], plump, look["mark"])
    shade = np.concatenate([under[6:], (under[6:] * (0.98, 0.86))[::-1]])
    return parts + [(shade, look["belly"] * 0.8)]


def _breast(pattern, plump, colour):
    if pattern == "banded":
        return [(np.concatenate([_egg(plump, 38, 58), _egg(plump, -40, -20)]), colour)]
    if pattern == "spotted":
        rows = [(x, y) for y in (0.14, 0.26, 0.38) for x in (-0.30, -0.16, -0.02, 0.12, 0.26)]
        return [(CIRCLE * 0.032 + (x + y / 2, y * plump), colour) for x, y in rows if np.hypot(x + y / 2, y) < 0.44]
    if pattern == "streaked":
        ends = [(x, 0.46 * plump * np.sqrt(1 - 4 * x * x)) for x in (-0.30, -0.18, -0.06, 0.06, 0.18, 0.30)]
        return [(_stroke((x - 0.03, 0.05 * plump), (x, y), 0.032), colour) for x, y in ends]
    return []


def _wing(look):
    """The folded wing on the near side."""
    plump = look["plump"]
    outline = [(0.26, -0.10), (0.20, 0.16 * plump), (-0.10, 0.32 * plump), (-0.60, 0.10), (-0.44, -0.10), (0.05, -0.20)]
    quills = [(-0.12, 0.22 * plump), (-0.60, 0.10), (-0.44, -0.08), (-0.22, -0.06)]
    parts = [(_rounded(outline), look["wing"]), (_rounded(quills), look["wing"] * 0.72)]
    parts += [(_stroke((-0.20, y), (-0.46, y / 2 + 0.03), 0.015), look["wing"] * 0.5) for y in (0.0, 0.06, 0.12)]
    for bar in range(look["wing_bars"]):
        x = 0.08 - 0.12 * bar
        parts.append((_stroke((x + 0.03, -0.11), (x - 0.03, 0.19 * plump), 0.045), look["bars"]))
    return parts


def _head(look, throat, nod):
    """Neck and head above `throat`, a point (2,) of the trunk; the head is rotated by `nod` degrees."""
    size = look["head"]
    centre = throat + (0.10, -0.55 * size - look["neck"])
    neck = [throat + (-0.30, 0.02), throat + (0.02, 0.26), throat + (0.14, 0.02), centre + (0.8 * size, 0)]
    neck = _rounded(neck + [centre - (0, size), centre - (0.8 * size, 0)])
    parts = _crest(look) + [(CIRCLE, look["hood"]), (CROWN * 0.98, look["cap"])]
    if look["mask"]:
        parts.append((_stroke((0.88, -0.02), (-0.72, -0.07), 0.38), look["mark"]))
    eye = np.array((0.38, -0.12))
    parts += [(CIRCLE * 0.30 + eye, look["ring"]), (CIRCLE * 0.20 + eye, np.array((24, 20, 22)))]
    parts.append((CIRCLE * 0.07 + eye + (0.06, -0.08), np.array((250, 250, 250))))
    parts = _moved(parts, lambda points: points * size) + _beak(look, size)
    parts = _moved(parts, lambda points: _turned(points, nod) + centre)
    return [(neck, look["hood"])] + parts


def _crest(look):
    """The crest, for a head of radius 1 at the origin."""
    if look["crest"] == "swept":
        return [(np.array([(0.4, -0.8), (-1.4, -1.5), (-0.8, -0.3)]), look["cap"])]
    if look["crest"] == "spiky":
        return [
            (_stroke((lean * 0.2 - 0.2, -0.6), (lean - 0.2, -1.6), 0.26), look["mark"]) for lean in (-0.8, -0.35, 0.1)
        ]
    return []


def _beak(look, size):
    length, half, hook = look["beak"], look["depth"] / 2, look["hook"]
    root, tip = 0.75 * size, (0.9 * size + length, 0.2 * size + hook)
    upper = [(root, 0.1 * size - half), (root + length * 0.6, 0.1 * size - half * 0.7), tip, tip]
    lower = [(root, 0.1 * size + half), (root, 0.1 * size), tip]
    return [(_rounded(upper + lower[:1]), look["bill"]), (np.array(lower), look["bill"] * 0.75)]


# The image.


def _draw_image(rng, looks, index):
    """An image of species `index`, and the box (left, top, width, height) of its bird."""
    size = rng.randint(128, 169, 2)
    canvas = _backdrop(rng, size)
    draw = ImageDraw.Draw(canvas)
    _paint(draw, _foliage(rng, size, rng.randint(5, 16), 0.07))
    bird = _placed(_bird(looks[index], rng), rng, min(size) * rng.uniform(0.50, 0.66))
    low, high = _extent(bird)
    middle = rng.uniform(high + 3, size - high - 3)
    low, high = low + middle, high + middle
    slope = rng.uniform(-10, 10)
    bough = _stroke((-5, high[1] - slope), (size[0] + 5, high[1] + slope), rng.uniform(3, 7))
    _paint(draw, [(bough, np.array((1.2, 1.0, 0.8)) * rng.uniform(40, 110))])
    for _ in range(rng.randint(3)):
        other = _placed(_bird(looks[rng.randint(len(looks))], rng), rng, min(size) * rng.uniform(0.3, 0.5))
        _paint(draw, _shifted(other, rng.randint(0, 2, 2) * size + rng.uniform(-8, 8, 2)))
    _paint(draw, _shifted(bird, middle))
    _paint(draw, _foliage(rng, size, rng.randint(0, 4), 0.05) + _twigs(rng, size))
    low, high = np.clip([low + rng.uniform(-2, 2, 2), high + rng.uniform(-2, 2, 2)], 0, size)
    return _lit(canvas.reduce(2), rng), tuple(np.concatenate([low, high - low]))


def _paint(draw, parts):
    """Fills the parts, given in pixels of the image, on a canvas of twice its size (for antialiasing)."""
    for points, colour in parts:
        draw.polygon((points * 2).ravel().tolist(), fill=tuple(min(255, int(value)) for value in colour))


def _shifted(parts, offset):
    return [(points + offset, colour) for points, colour in parts]


def _extent(parts):
    points = np.concatenate([points for points, _ in parts])
    return points.min(0), points.max(0)


def _placed(parts, rng, size):
    """The bird, randomly tilted and mirrored, centred on the origin, its longer side `size` pixels long."""
    tilt, mirror = rng.uniform(-15, 15), rng.randint(2) * 2 - 1
    parts = _moved(parts, lambda points: _turned(points, tilt) * (mirror, 1))
    low, high = _extent(parts)
    return _moved(parts, lambda points: (points - (low + high) / 2) * size / max(high - low))


def _backdrop(rng, size):
    """A blurred background in the colours of a random scene, on a canvas of twice the image's size."""
    above, below = np.array(SCENES[rng.randint(len(SCENES))]) + rng.uniform(-25, 25, (2, 3))
    mix = np.linspace(0, 1, 6)[:, None, None] + rng.uniform(-0.4, 0.4, (6, 6, 1))
    blurred = above * (1 - mix) + below * mix + rng.uniform(-15, 15, (6, 6, 3))
    blurred = Image.fromarray(np.clip(blurred, 0, 255).astype(np.uint8))
    return blurred.resize((int(size[0]) * 2, int(size[1]) * 2), Image.BICUBIC)


def _foliage(rng, size, count, length):
    """Leaves of one colour at random places; `length` is half the length of a leaf, relative to the image width."""
    hue = LEAVES[rng.randint(len(LEAVES))] + rng.uniform(-20, 20, 3)
    parts = []
    for _ in range(count):
        leaf = _turned(LEAF * (length * size[0] * rng.uniform(0.5, 1.5)), rng.uniform(0, 180))
        parts.append((leaf + rng.uniform(0, 1, 2) * size, hue * rng.uniform(0.75, 1.2)))
    return parts


def _twigs(rng, size):
    """Two thin stalks in the foreground, from the top or the bottom edge."""
    parts = []
    for _ in range(2):
        root, tip = rng.uniform(0, 1, (2, 2)) * size
        root[1] = rng.choice((-5, size[1] + 5))
        hue = LEAVES[rng.randint(len(LEAVES))] * rng.uniform(0.6, 1.1, 3)
        parts.append((_stroke(root, tip, rng.uniform(1.0, 2.5)), hue))
    return parts


def _lit(image, rng):
    """Changes the lighting: a random colour cast and gamma."""
    cast, gamma = rng.uniform(0.8, 1.2, 3), rng.uniform(0.8, 1.3)
    levels = np.linspace(0, 1, 256) ** gamma * cast[:, None] * 255
    return image.point(np.clip(levels, 0, 255).astype(int).ravel().tolist())


def main():
    parser = errors.Parser(description="Draw the demo data set; an existing one is kept.")
    parser.add_argument("--data-dir", default="./data/demo", help="folder of the data set (default: ./data/demo)")
    print(draw_demo(parser.parse_args().data_dir))


if __name__ == "__main__":
    errors.run(main)
