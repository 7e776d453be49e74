"""Both losses over a whole batch, whose images may be spread over several devices."""

import numpy as np

from cgd.data import images
from cgd.system.environment import mx
from cgd.system.errors import InputError
from cgd.training import losses


class Objective:
    """The ranking loss plus the classification loss of a batch, and their gradients.

    With several devices each one computes its share of the batch. The outputs are gathered, the hardest triplets are
    mined in the whole batch, and the gradients are sent back to each device, as if there were one device. The exception
    is batch norm: each device normalises by the statistics of its own share. The running statistics, which evaluation
    and checkpoints use, are those of the first device. The images of an identity are spread over the devices, so that
    the shares are alike.

    net : model.CGD in its training form · recipe : recipes.Recipe · devices : list of mx.Context
    """

    def __init__(self, net, recipe, devices):
        self.net, self.recipe, self.devices = net, recipe, devices

    def backward(self, pictures, identities):
        """Forward and backward pass. The gradients are in the parameters afterwards.

        pictures : (N, H, W, 3) uint8 NDArray · identities : (N,) array

        Returns the total loss, a float, and {name: float} with both losses and the statistics of `losses.Hardest`.
        Raises InputError for fewer images than devices.
        """
        if len(identities) < len(self.devices):
            raise InputError(f"only {len(identities)} images of a batch could be read, for {len(self.devices)} devices")
        shares = self.shares()
        outputs = []
        with mx.autograd.record():
            for device, share in zip(self.devices, shares):
                x = images.normalise(pictures[share].as_in_context(device), self.recipe.mean, self.recipe.std)
                _, ranked, logits = self.net(x)
                outputs.append(ranked + logits)
        gathered = self._gathered(outputs)
        total, values = self._losses(gathered, np.concatenate([identities[share] for share in shares]))
        first = 0
        for device, own in zip(self.devices, outputs):
            rows = slice(first, first + len(own[0]))
            mx.autograd.backward(own, [x.grad[rows].as_in_context(device) for x in gathered])
            first = rows.stop
        return float(total.asscalar()), {name: float(value.asscalar()) for name, value in values.items()}

    def shares(self):
        """The share of a batch of each device, as slices. In a batch the images of an identity are adjacent."""
        return [slice(first, None, len(self.devices)) for first in range(len(self.devices))]

    def _gathered(self, outputs):
        """The outputs of all devices on the first one, detached: a list of (N, d) arrays."""
        home = self.devices[0]
        gathered = [mx.nd.concat(*[x.as_in_context(home) for x in same], dim=0).detach() for same in zip(*outputs)]
        for x in gathered:
            x.attach_grad()
        return gathered

    def _losses(self, gathered, identities):
        """The total loss, whose gradients are in `gathered` afterwards, and {name: (1,) array}."""
        recipe, home = self.recipe, self.devices[0]
        identities = mx.nd.array(identities, ctx=home)
        zero = mx.nd.zeros(1, ctx=home)
        with mx.autograd.record():
            ranked = gathered[: len(gathered) - bool(self.net.classifier)]
            triplets = [
                losses.batch_hard_triplet(x, identities, recipe.margin, recipe.soft_margin, recipe.squared)
                for x in ranked
            ]
            ranking = sum((loss for loss, _ in triplets), zero)
            classification = zero
            if self.net.classifier:
                classification = losses.smoothed_softmax(gathered[-1], identities, recipe.temperature, recipe.smoothing)
            total = recipe.ranking_weight * ranking + recipe.classification_weight * classification
        total.backward()
        values = {"ranking_loss": ranking, "classification_loss": classification}
        for name, statistics in zip(losses.Hardest._fields, zip(*(hardest for _, hardest in triplets))):
            values[name] = sum(statistics, zero) / len(statistics)
        return total, values
