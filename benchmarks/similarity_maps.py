"""What similarity maps rest on, over random pairs of test images of one class, and of different classes.

    python benchmarks/similarity_maps.py runs/lists-MG-1/last --dataset lists --data-dir crops --test-txt test.txt

For a sample of images it prints:

- how alike the maps of one image are for two random others, as a correlation, with the embeddings as they are and
  without the direction that they share; and Recall@1 of both. All that follows is without it;
- where the positive part of the maps is: in the middle quarter of the image, in its four corners (a quarter, too), and
  on the half between; on how many places half of it sits;
- how much the similarity falls when a quarter of the image is hidden (filled with the mean colour): the places with the
  highest values of its map, random ones, or the lowest.

The flags of the data set are those of test.py. Runs on the CPU.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cgd.data import flags, images  # noqa: E402
from cgd.network.checkpoints import Checkpoint  # noqa: E402
from cgd.retrieval.maps import PlaceVectors, similarity_maps, without  # noqa: E402
from cgd.retrieval.recall import recall_at_k  # noqa: E402
from cgd.system.environment import mx  # noqa: E402


def correlation(a, b):
    return np.corrcoef(a.ravel(), b.ravel())[0, 1]


def regions(shape):
    """{name: (h, w)}, the share of each place that lies in a region of the image."""
    inner = [np.clip(np.minimum(np.arange(n) + 1, 0.75 * n) - np.maximum(np.arange(n), 0.25 * n), 0, 1) for n in shape]
    middle, corners = np.outer(*inner), np.outer(*(1 - each for each in inner))
    return {"middle": middle, "between": 1 - middle - corners, "corners": corners}


def positive_part(values):
    values = np.maximum(values, 0)
    return values / values.sum() if values.any() else values


def places_of_half(values):
    """The number of places, the greatest first, that hold half of the positive part."""
    return np.searchsorted(np.cumsum(np.sort(positive_part(values).ravel())[::-1]), 0.5) + 1


def hidden(picture, values, fill):
    """The picture with a quarter of its pixels filled, those where the map, upsampled to it, is greatest."""
    shown = np.asarray(Image.fromarray(values.astype(np.float32)).resize(picture.shape[1::-1], Image.BILINEAR))
    picture = picture.copy()
    greatest = np.argsort(shown.ravel(), kind="stable")[-(shown.size // 4) :]
    picture.reshape(-1, 3)[greatest] = fill
    return picture


def pairs(identities, same, count, random):
    """Random pairs of indices of one class, or of different ones: (count, 2)."""
    alike = identities[:, None] == identities
    np.fill_diagonal(alike, not same)
    found = np.argwhere(alike == same)
    return found[random.permutation(len(found))[:count]]


def row(name, *values):
    print("| " + " | ".join([name, *(f"{value:.3f}" for value in values)]) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prefix", metavar="PREFIX")
    parser.add_argument("--images", type=int, default=800, help="random test images (default: 800)")
    parser.add_argument("--pairs", type=int, default=200, help="random pairs of each kind (default: 200)")
    flags.add_data_flags(parser, "the checkpoint's own", "as the checkpoint was trained")
    options = parser.parse_args()
    checkpoint, random = Checkpoint(options.prefix), np.random.RandomState(0)
    description = checkpoint.description
    name = options.dataset or description["dataset"]
    records = flags.load_dataset(options, name, cropped=description["cropped"], need_training=False).test
    records = [records[at] for at in random.permutation(len(records))[: options.images]]
    pictures = [images.crop(images.read_image(record.path), record.box).asnumpy() for record in records]
    identities = np.array([record.identity for record in records])
    describe = PlaceVectors(checkpoint, mx.cpu())
    whole = describe(pictures)
    mean = np.mean([places.embedding for places in whole], axis=0)
    rest = [without(places, mean) for places in whole]

    print(
        f"\n{len(pictures)} images, maps of {' x '.join(map(str, similarity_maps(*rest[:2]).a.whole.shape))} places\n"
    )
    print("| | R@1 | maps for two random others: correlation |\n|---|---|---|")
    for title, described in (("embeddings as they are", whole), ("without what they share", rest)):
        vectors = np.stack([places.embedding for places in described])
        alike = []
        for _ in range(options.pairs):
            a, b, c = (described[at] for at in random.permutation(len(pictures))[:3])
            alike.append(correlation(similarity_maps(a, b).a.whole, similarity_maps(a, c).a.whole))
        row(title, recall_at_k(vectors, identities, [1])[0], np.mean(alike))

    print(
        "\n| positive part of the maps | middle | between | corners | places with half of it |\n|---|---|---|---|---|"
    )
    fill = np.round(255 * np.array(description["mean"])).astype(np.uint8)
    falls = {}
    for kind, same in (("one class", True), ("two classes", False)):
        chosen = pairs(identities, same, options.pairs, random)
        found = [similarity_maps(rest[a], rest[b]) for a, b in chosen]
        for letter in ["all", *found[0].a.branches]:
            sides = [side for each in found for side in each[1:]]
            values = [side.whole if letter == "all" else side.branches[letter] for side in sides]
            parts = [
                (positive_part(each) * share).sum() for share in regions(values[0].shape).values() for each in values
            ]
            shares = np.reshape(parts, (3, -1)).mean(axis=1)
            row(f"{kind}, {letter}", *shares, np.mean([places_of_half(each) for each in values]))
        ways = {"highest": lambda x: x, "random": lambda x: random.rand(*x.shape), "lowest": lambda x: -x}
        for way, order in ways.items():
            changed = describe([hidden(pictures[a], order(e.a.whole), fill) for (a, _), e in zip(chosen, found)])
            after = [without(x, mean).embedding @ rest[b].embedding for x, (_, b) in zip(changed, chosen)]
            falls[kind, way] = np.mean(after)
        falls[kind, "nothing"] = np.mean([each.similarity for each in found])
    shape = found[0].a.whole.shape
    row("equal everywhere", *(share.mean() for share in regions(shape).values()), np.prod(shape) / 2)
    print("\n| similarity, with a quarter hidden: | nothing | lowest | random | highest |\n|---|---|---|---|---|")
    for kind in ("one class", "two classes"):
        row(kind, *(falls[kind, way] for way in ("nothing", "lowest", "random", "highest")))


if __name__ == "__main__":
    main()
