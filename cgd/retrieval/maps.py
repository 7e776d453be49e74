"""Similarity maps: what each place of two images adds to the cosine similarity of their embeddings.

docs/explain.md derives them. Stylianou, Souvenir and Pless, "Visualizing Deep Similarity Networks" (WACV 2019), draw
such maps for networks with one pooling. For a pair of images (H, W, 3), uint8, cropped:

    vectors = PlaceVectors(checkpoint, mx.cpu())
    a, b = (without(places, common) for places in vectors([image_a, image_b]))  # common : the mean embedding
    maps = similarity_maps(a, b)
    over(image_a, maps.a.whole, scale_of(maps.a.whole, maps.b.whole)).save("a.png")
"""

import copy
from collections import namedtuple

import numpy as np
from PIL import Image

from cgd.data import images
from cgd.network.heads import BIAS, Head, total
from cgd.system.environment import mx

# embedding : (dim,) of length 1, the sum of all of the following
# places : {letter: (h, w, dim)}, for each global descriptor S, M, G · bias : (dim,), of the Dense layers. All float32
Places = namedtuple("Places", "embedding places bias")

# similarity : float · a, b : a Side for each image
SimilarityMaps = namedtuple("SimilarityMaps", "similarity a b")

# whole : (h, w) float32, the sum of the branches' maps · branches : {letter: (h, w) float32}
# bias : float. whole.sum() + bias is the similarity, up to rounding
Side = namedtuple("Side", "whole branches bias")

POSITIVE = np.array([[255, 214, 92], [240, 96, 24], [140, 0, 32]])  # colours for a third, two thirds and all
NEGATIVE = np.array([[150, 205, 255], [50, 110, 220], [20, 20, 130]])
OPACITY = 0.85


class PlaceVectors:
    """Describes images by the vectors of their places, each image once, for any number of pairs.

    Memory: h * w * dim * 4 bytes for each image and descriptor, 1.2 MB for 14 x 14 places and 1,536 dimensions.
    """

    def __init__(self, checkpoint, ctx, batch_size=32, size=None):
        """Raises InputError as `heads.Head` does.

        checkpoint : checkpoints.Checkpoint · ctx : the device · batch_size : images per forward pass
        size : (W, H) of the network's input; without it, the images' size in training
        """
        description = checkpoint.description
        self.head, self.ctx, self.batch_size = Head(checkpoint), ctx, batch_size
        self.size = size or (description["image_width"], description["image_height"])
        self.statistics = description["mean"], description["std"]
        with_map = copy.copy(checkpoint)
        last_map = checkpoint.symbol.get_internals()[self.head.map_name]
        with_map.symbol = mx.sym.Group([checkpoint.symbol, last_map])
        self.network = with_map.graph(ctx, self.size)

    def __call__(self, pictures):
        """A list of `Places`, one for each image (H, W, 3) uint8, RGB, cropped, of any size."""
        found = []
        for batch in images.eval_batches(len(pictures), self.batch_size):
            resized = [images.resize(mx.nd.array(pictures[at], dtype="uint8"), self.size) for at in batch]
            x = images.normalise(mx.nd.stack(*resized).as_in_context(self.ctx), *self.statistics)
            found += [self._places(feature_map) for feature_map in self.network(x)[1].asnumpy()]
        return found

    def _places(self, feature_map):
        terms = self.head(feature_map)
        embedding, bias = total(terms), terms.pop(BIAS)
        return Places(embedding, terms, bias)


def without(places, common):
    """`Places` without what the embeddings of a data set have in common, scaled to an embedding of length 1 again.

    After training with a ranking loss, any two embeddings can have a similarity near 1: then all share a direction, and
    the maps of an image are the same for any other. This removes the direction from the vectors.

    common : (dim,), the mean of the embeddings
    """
    direction = (common / np.linalg.norm(common)).astype(np.float32)
    bias, *vectors = (x - (x @ direction)[..., None] * direction for x in (places.bias, *places.places.values()))
    rest = dict(zip(places.places, vectors))
    embedding = total(rest) + bias
    length = np.linalg.norm(embedding) or np.float32(1)
    return Places(embedding / length, {letter: x / length for letter, x in rest.items()}, bias / length)


def similarity_maps(a, b):
    """The `SimilarityMaps` of two `Places`. For the map of one image, the embedding of the other is held fixed."""
    return SimilarityMaps(float(a.embedding @ b.embedding), _side(a, b.embedding), _side(b, a.embedding))


def _side(image, other):
    branches = {letter: vectors @ other for letter, vectors in image.places.items()}
    return Side(sum(branches.values()), branches, float(image.bias @ other))


def scale_of(*maps):
    """The greatest magnitude in any of the maps, which gets the full colour; images that share it can be compared."""
    return max(float(np.abs(values).max()) for values in maps) or 1.0


def heat(values, scale, size):
    """A map (h, w) as an RGBA image of `size` (W, H): positive places yellow to red, negative ones blue, 0 transparent.

    Upsampled bilinearly. `scale` is the value with the full colour, from `scale_of`.
    """
    values = np.asarray(Image.fromarray(values.astype(np.float32)).resize(size, Image.BILINEAR)) / scale
    strength = np.minimum(np.abs(values), 1)
    thirds = np.arange(1, 4) / 3
    colours = [
        np.where(values > 0, *(np.interp(strength, thirds, side[:, channel]) for side in (POSITIVE, NEGATIVE)))
        for channel in range(3)
    ]
    opacity = 255 * OPACITY * np.minimum(3 * strength, 1)
    return Image.fromarray(np.stack([*colours, opacity], axis=-1).round().astype(np.uint8), "RGBA")


def over(picture, values, scale):
    """An RGB image: a map over a picture, a Pillow image or (H, W, 3) uint8, which is drawn in grey."""
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    grey = picture.convert("L").convert("RGBA")
    return Image.alpha_composite(grey, heat(values, scale, picture.size)).convert("RGB")
