"""Estimates how long a run takes on a device, from a few batches of noise."""

import math
import time
from typing import NamedTuple

import numpy as np

from cgd.data import datasets
from cgd.network import checkpoints
from cgd.system.environment import mx
from cgd.training import recipes, trainer

CPU_PIXELS = 16 * 224 * 224  # in a batch: larger ones are not faster per image
SECONDS = 4.0  # each, for training and for inference
CALLS = 3  # at least


class Rates(NamedTuple):
    """Images per second."""

    training: float
    inference: float

    def seconds(self, recipe, tested):
        """The duration of a run whose evaluations have `tested` images."""
        evaluations = max(1, -(-recipe.iterations // recipe.eval_every))
        return recipe.iterations * recipe.batch_size / self.training + evaluations * tested / self.inference


def measure(recipe, device, micro_batch=None):
    """The rates of a recipe's network on a device, without reading images.

    With the recipe's batch, or on a CPU with a part of it if it is large. If `micro_batch` divides the recipe's batch,
    it divides this part too, because training in pieces computes each image twice.
    """
    images = recipe.batch_size
    if device.device_type == "cpu":
        images = min(images, CPU_PIXELS // (recipe.image_width * recipe.image_height))
    images = max(4, images - images % 2)  # two identities with two images each
    if micro_batch:
        micro_batch = min(micro_batch, images // 2) if micro_batch < recipe.batch_size else None
    run, pictures, identities = on_noise(recipe, images, device, micro_batch)
    training = images / _fastest(lambda: run.step(pictures, identities))
    inputs = mx.nd.zeros((images, 3, recipe.image_height, recipe.image_width), ctx=device)
    embed = checkpoints.inference(run.net, device, (recipe.image_width, recipe.image_height))
    return Rates(training, images / _fastest(lambda: embed(inputs)))


def on_noise(recipe, images, device, micro_batch=None):
    """What to measure the training of a recipe with: a Trainer, and the pictures and identities of a batch of noise."""
    small = recipes.replace(recipe, batch_size=images, images_per_identity=2, lr=0.0)  # on noise it could diverge
    records = [datasets.Record(None, n // 2, None, n) for n in range(images)]
    run = trainer.Trainer(
        trainer.build(small, datasets.Dataset("noise", records, records, (1,)), [device]),
        datasets.Dataset("noise", records, records, (1,)),
        small,
        ".",
        [device],
        micro_batch=micro_batch,
    )
    noise = np.random.RandomState(0).randint(0, 256, (images, recipe.image_height, recipe.image_width, 3))
    pictures = mx.nd.array(noise, dtype="uint8")
    identities = np.array([record.identity for record in records], dtype="float32")
    return run, pictures, identities


def _fastest(function):
    """Seconds of the fastest of several calls.

    The first calls set up buffers and kernels, and other programs may use the cores: both only make a call slower.
    """
    best, calls, end = math.inf, 0, time.monotonic() + SECONDS
    while calls < CALLS or time.monotonic() < end:
        start = time.monotonic()
        function()
        mx.nd.waitall()
        best, calls = min(best, time.monotonic() - start), calls + 1
    return best
