"""Similarity maps for the pairs of a page."""

from cgd.data import images
from cgd.gallery.page import SimilarityMap
from cgd.retrieval.maps import PlaceVectors, similarity_maps, without
from cgd.system.errors import InputError

PAIRS = 64  # whose pictures are held at a time


def maps_of(checkpoint, ctx, common, size=None):
    """The argument `maps` of page.write: a function of pairs of Items to their lists of SimilarityMap.

    checkpoint : checkpoints.Checkpoint · ctx : the device · size : (W, H) of the network's input
    common : (dim,), the mean of the gallery's embeddings. What all pictures share is left out (docs/explain.md)

    A pair with a picture that cannot be read has no maps. Raises InputError as PlaceVectors does.
    """
    vectors = PlaceVectors(checkpoint, ctx, size=size)

    def maps(pairs):
        for start in range(0, len(pairs), PAIRS):
            part = pairs[start : start + PAIRS]
            pixels = {item: _pixels(item, vectors.size) for pair in part for item in pair}
            readable = [item for item, picture in pixels.items() if picture is not None]
            found = vectors([pixels[item] for item in readable])
            places = {item: without(each, common) for item, each in zip(readable, found)}
            for query, neighbour in part:
                both = query in places and neighbour in places
                yield _listed(similarity_maps(places[query], places[neighbour])) if both else []

    return maps


def _pixels(item, size):
    """The picture of an Item, (H, W, 3) uint8, cropped, of the network's size; None if it cannot be read.

    Resized at once, because many photographs as they come from a camera do not fit into the memory.
    """
    try:
        return images.resize(images.crop(images.read_image(item.path), item.box), size).asnumpy()
    except InputError:
        return None


def _listed(found):
    """[SimilarityMap]: the whole, and its branches if there are several."""
    listed = [SimilarityMap("all", found.similarity, found.a.whole, found.b.whole)]
    if len(found.a.branches) > 1:
        for letter, values in found.a.branches.items():
            other = found.b.branches[letter]
            listed.append(SimilarityMap(letter, float(values.sum()), values, other))
    return listed
