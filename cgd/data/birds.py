"""Draw the demo data set: invented birds in the folder layout of CUB-200-2011.

A class is a kind of bird: the colours and shapes of its parts, its crest and its markings stay the same in all of
its pictures. Pose, size, light, background, passing birds and what stands in front are new in every picture, so that
a picture of the same kind can only be found by what makes the kind.

Every polygon lives in the bird's own frame (x to the right, where it looks, y down, body length 1) until it is placed
on the canvas.

    python -m cgd.data.birds --data-dir ./data/demo
"""

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from cgd.system import errors
from cgd.system.errors import InputError

DRAWING = 1  # raise it whenever the pictures change: folders drawn by an older version are then refused

# The kinds share these colours, so that the overall colour of a picture tells little.
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
# The colours above and below of morning, wood, meadow, autumn, dusk, lake, blossom, snow, and thicket.
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

# The shape of a bird whose trunk has length 1: how high the trunk is and how steep (degrees), the head's radius, the
# lengths of neck and beak, the beak's height and the drop of its tip, the tail's length, half its width and the depth
# of its fork, the length of the legs.
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
    """Draw a data set of invented birds into `folder`, in the layout of CUB-200-2011.

    folder: where the data set is to be; its parents are made. A folder that this function has drawn before with the
    same arguments is kept as it is. The pictures appear there all at once, when the last one is drawn.
    classes, images_per_class: how many kinds of birds (at most 999) and how many pictures of each.
    seed: other seeds give other birds.
    progress: wraps the iterable of classes that is being drawn; `tqdm.tqdm` shows a bar.

    Writes images/<class>/<picture>.jpg (RGB, 128 to 168 pixels a side) and images.txt, image_class_labels.txt,
    classes.txt and bounding_boxes.txt (id, left, top, width, height in pixels); picture and class ids start at 1.
    Returns the folder as a Path. Raises InputError if `folder` is there and holds anything else.
    """
    folder = Path(folder)
    made = f"drawing {DRAWING}: {classes} classes of {images_per_class} pictures, seed {seed}\n"
    if folder.exists():
        return _check_drawn(folder, made)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Drawn beside its place and renamed: an interrupted drawing leaves nothing that looks whole.
    with tempfile.TemporaryDirectory(dir=str(folder.parent), prefix=folder.name + ".") as beside:
        whole = Path(beside) / folder.name
        _draw_classes(whole, classes, images_per_class, seed, progress)
        (whole / "drawn.txt").write_text(made)
        try:
            whole.rename(folder)
        except OSError:
            if not folder.exists():
                raise
    return _check_drawn(folder, made)  # another process may have drawn it meanwhile


def _check_drawn(folder, made):
    if not (folder / "drawn.txt").is_file() or (folder / "drawn.txt").read_text() != made:
        raise InputError(f"{folder} is there, and is not {made.strip()}")
    return folder


def _draw_classes(folder, classes, images_per_class, seed, progress):
    lists = {"images": [], "image_class_labels": [], "bounding_boxes": [], "classes": []}
    looks = [_look(np.random.RandomState([seed, label, 0])) for label in range(1, classes + 1)]
    for label in progress(range(1, classes + 1)):
        name = "{:03d}.{}".format(label, looks[label - 1]["name"])
        lists["classes"].append(f"{label} {name}")
        (folder / "images" / name).mkdir(parents=True)
        for index in range(1, images_per_class + 1):
            image, box = _picture(np.random.RandomState([seed, label, index]), looks, label - 1)
            path = "{}/{}_{:04d}.jpg".format(name, looks[label - 1]["name"], index)
            image.save(str(folder / "images" / path), quality=88)
            number = len(lists["images"]) + 1
            lists["images"].append(f"{number} {path}")
            lists["image_class_labels"].append(f"{number} {label}")
            lists["bounding_boxes"].append("{} {:.1f} {:.1f} {:.1f} {:.1f}".format(number, *box))
    for name, lines in lists.items():
        (folder / (name + ".txt")).write_text("\n".join(lines) + "\n")


# What makes a kind.


def _look(rng):
    """All that the pictures of one kind have in common, as a dict."""
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
    """Points turned about the pivot; positive angles lift what lies to the right."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return (np.asarray(points, float) - pivot) @ np.array([[cos, -sin], [sin, cos]]) + pivot


def _rounded(points):
    """A closed outline with its corners cut three times (Chaikin), which makes it a smooth curve."""
    points = np.asarray(points, float)
    for _ in range(3):
        ahead = np.concatenate([points[1:], points[:1]])
        points = np.stack([0.75 * points + 0.25 * ahead, 0.25 * points + 0.75 * ahead], 1).reshape(-1, 2)
    return points


def _arc(start, stop):
    """Points of the unit circle between two angles (degrees, from the right, downwards)."""
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
    """The body's outline between two angles (degrees, from the breast, downwards): fuller at the breast."""
    unit = _arc(start, stop)
    return unit * (0.5, 0.5 * plump) * np.stack([np.ones(25), 1 + 0.18 * unit[:, 0]], 1)


def _moved(parts, move):
    """The parts with `move` applied to their points, to all of them at once because that is quicker."""
    points = move(np.concatenate([points for points, _ in parts]))
    ends = np.cumsum([len(points) for points, _ in parts])
    return [(points[end - len(part) : end], colour) for end, (part, colour) in zip(ends, parts)]


# The bird, part by part: lists of (points, colour), the first part the farthest.


def _bird(look, rng):
    """One bird in a pose of its own."""
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
    """The near wing, folded."""
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
    """Neck and head above the throat, a point (2,) of the trunk; the head nods by some degrees."""
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
    """The crest of a head of radius 1 at the origin."""
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


# The picture.


def _picture(rng, looks, index):
    """One picture of kind `index`: the image and the box (left, top, width, height) of its bird."""
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
    """Fill the parts, in pixels of the picture, on the canvas, which has twice its size for smooth edges."""
    for points, colour in parts:
        draw.polygon((points * 2).ravel().tolist(), fill=tuple(min(255, int(value)) for value in colour))


def _shifted(parts, offset):
    return [(points + offset, colour) for points, colour in parts]


def _extent(parts):
    points = np.concatenate([points for points, _ in parts])
    return points.min(0), points.max(0)


def _placed(parts, rng, size):
    """The bird tilted and mirrored or not, centred on the origin, its longer side `size` pixels long."""
    tilt, mirror = rng.uniform(-15, 15), rng.randint(2) * 2 - 1
    parts = _moved(parts, lambda points: _turned(points, tilt) * (mirror, 1))
    low, high = _extent(parts)
    return _moved(parts, lambda points: (points - (low + high) / 2) * size / max(high - low))


def _backdrop(rng, size):
    """A soft blur of one of the scenes, on a canvas of twice the picture's size."""
    above, below = np.array(SCENES[rng.randint(len(SCENES))]) + rng.uniform(-25, 25, (2, 3))
    mix = np.linspace(0, 1, 6)[:, None, None] + rng.uniform(-0.4, 0.4, (6, 6, 1))
    blurred = above * (1 - mix) + below * mix + rng.uniform(-15, 15, (6, 6, 3))
    blurred = Image.fromarray(np.clip(blurred, 0, 255).astype(np.uint8))
    return blurred.resize((int(size[0]) * 2, int(size[1]) * 2), Image.BICUBIC)


def _foliage(rng, size, count, length):
    """Leaves of one tree anywhere in the picture; length: half a leaf, as a share of the picture's."""
    hue = LEAVES[rng.randint(len(LEAVES))] + rng.uniform(-20, 20, 3)
    parts = []
    for _ in range(count):
        leaf = _turned(LEAF * (length * size[0] * rng.uniform(0.5, 1.5)), rng.uniform(0, 180))
        parts.append((leaf + rng.uniform(0, 1, 2) * size, hue * rng.uniform(0.75, 1.2)))
    return parts


def _twigs(rng, size):
    """Two thin stalks in front of all, which hang into the picture or grow into it."""
    parts = []
    for _ in range(2):
        root, tip = rng.uniform(0, 1, (2, 2)) * size
        root[1] = rng.choice((-5, size[1] + 5))
        hue = LEAVES[rng.randint(len(LEAVES))] * rng.uniform(0.6, 1.1, 3)
        parts.append((_stroke(root, tip, rng.uniform(1.0, 2.5)), hue))
    return parts


def _lit(image, rng):
    """The picture in another light: a cast of colour and a gamma."""
    cast, gamma = rng.uniform(0.8, 1.2, 3), rng.uniform(0.8, 1.3)
    levels = np.linspace(0, 1, 256) ** gamma * cast[:, None] * 255
    return image.point(np.clip(levels, 0, 255).astype(int).ravel().tolist())


def main():
    parser = errors.Parser(description="Draw the demo data set; a whole one is kept as it is.")
    parser.add_argument("--data-dir", default="./data/demo", help="where it is to be (default: ./data/demo)")
    print(draw_demo(parser.parse_args().data_dir))


if __name__ == "__main__":
    errors.run(main)
