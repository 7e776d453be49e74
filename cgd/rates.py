"""How long a run takes on the device at hand, from a few batches of noise."""

import time
from typing import NamedTuple

import numpy as np

from cgd import datasets, recipes, trainer
from cgd.environment import mx

ON_CPU = 16  # images a batch: enough there for the rate of larger ones
ROUNDS = 2


class Rates(NamedTuple):
    """Images a second."""

    training: float
    inference: float

    def seconds(self, recipe, tested):
        """Of a run whose evaluations look at so many pictures."""
        evaluations = max(1, -(-recipe.iterations // recipe.eval_every))
        return recipe.iterations * recipe.batch_size / self.training + evaluations * tested / self.inference


def measure(recipe, device):
    """The rates of a recipe's network on a device, the reading of pictures not counted: that has cores of its own."""
    images = recipe.batch_size if device.device_type == "gpu" else ON_CPU
    small = recipes.replace(recipe, batch_size=images, images_per_identity=2)
    records = [datasets.Record(None, n // 2, None, n) for n in range(images)]
    run = trainer.Trainer(
        trainer.build(small, datasets.Dataset("noise", records, records, (1,)), [device]),
        datasets.Dataset("noise", records, records, (1,)),
        small,
        ".",
        [device],
    )
    noise = np.random.RandomState(0).randint(0, 256, (images, recipe.image_height, recipe.image_width, 3))
    pictures = mx.nd.array(noise, dtype="uint8")
    identities = np.array([record.identity for record in records], dtype="float32")
    inputs = mx.nd.zeros((images, 3, recipe.image_height, recipe.image_width), ctx=device)
    return Rates(
        images / _seconds(lambda: run.step(pictures, identities)), images / _seconds(lambda: run.net.embed(inputs))
    )


def _seconds(function):
    function()
    mx.nd.waitall()
    start = time.time()
    for _ in range(ROUNDS):
        function()
        mx.nd.waitall()
    return (time.time() - start) / ROUNDS
