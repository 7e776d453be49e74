"""Both losses over a whole batch, which may be computed on several devices and in several pieces."""

import numpy as np

from cgd.data import images
from cgd.system.environment import mx
from cgd.system.errors import InputError
from cgd.training import losses

RUNNING = ("running_mean", "running_var")  # ends of the names of batch norm's running statistics


class Objective:
    """The ranking loss plus the classification loss of a batch, and their gradients.

    A batch is divided among the devices, and with `micro_batch` each device's share into pieces. The outputs of all
    pieces are gathered, the hardest triplets are mined in the whole batch, and the gradients are sent back to each
    piece, as if there were one. The exception is batch norm: each piece is normalised by its own statistics. The
    running statistics, which evaluation and checkpoints use, are those of the first device, updated once for each of
    its pieces. The images of an identity are spread over the pieces, so that the pieces are alike.

    A device with several pieces holds the activations of one at a time: it first computes the outputs of all, and then
    each piece again, with its gradients. This is gradient caching (Gao et al., "Scaling Deep Contrastive Learning
    Batch Size under Memory Limited Setup", 2021).

    net : model.CGD in its training form · recipe : recipes.Recipe · devices : list of mx.Context
    micro_batch : images of a piece at most, or None for one piece on each device
    """

    def __init__(self, net, recipe, devices, micro_batch=None):
        self.net, self.recipe, self.devices, self.micro_batch = net, recipe, devices, micro_batch
        parameters = net.collect_params().values()
        self.running = [parameter for parameter in parameters if parameter.name.endswith(RUNNING)]
        if micro_batch:
            for parameter in parameters:
                if parameter.grad_req != "null":
                    parameter.grad_req = "add"

    def backward(self, pictures, identities):
        """Forward and backward pass. The gradients are in the parameters afterwards.

        pictures : (N, H, W, 3) uint8 NDArray · identities : (N,) array

        Returns the total loss, a float, and {name: float} with both losses and the statistics of `losses.Hardest`.
        Raises InputError for fewer images than devices.
        """
        if len(identities) < len(self.devices):
            raise InputError(f"only {len(identities)} images of a batch could be read, for {len(self.devices)} devices")
        pieces = self.pieces(len(identities))
        several = len(pieces) > len(self.devices)
        outputs = self._outputs_alone(pictures, pieces) if several else self._recorded(pictures, pieces)
        gathered = self._gathered(outputs)
        total, values = self._losses(gathered, np.concatenate([identities[rows] for _, rows in pieces]))
        if self.micro_batch:
            self.net.collect_params().zero_grad()
        ends = np.cumsum([len(own[0]) for own in outputs]).tolist()
        for number, (device, _) in enumerate(pieces):
            rows = slice(ends[number - 1] if number else 0, ends[number])
            gradients = [x.grad[rows].as_in_context(device) for x in gathered]
            own = self._recorded(pictures, pieces[number : number + 1]) if several else outputs[number : number + 1]
            mx.autograd.backward(*own, gradients)
            del own
        return float(total.asscalar()), {name: float(value.asscalar()) for name, value in values.items()}

    def pieces(self, images):
        """The pieces of a batch: (device, its images as a slice), in turn over the devices; sizes differ by at most 1.

        No piece has a single image, for which batch norm has no variance; where this needs it, some have one or two
        images more than `micro_batch`. In a batch the images of an identity are adjacent.
        """
        devices = len(self.devices)
        share = -(-images // devices)
        most = images // devices // 2  # pieces of a device that have two images each
        count = devices * max(1, min(-(-share // (self.micro_batch or share)), most))
        return [(self.devices[first % devices], slice(first, None, count)) for first in range(count)]

    def largest_piece(self, images):
        """The size of the largest piece of a batch."""
        return -(-images // len(self.pieces(images)))

    def _recorded(self, pictures, pieces):
        """The outputs of each piece, lists of arrays, recorded for the backward pass."""
        with mx.autograd.record():
            return [self._outputs(pictures, *piece) for piece in pieces]

    def _outputs_alone(self, pictures, pieces):
        """The same outputs, without what a backward pass needs.

        The running statistics stay as they are: MXNet's batch norm updates them in the backward pass, but cuDNN's in
        the forward pass.
        """
        mx.nd.waitall()  # MXNet does not order other operations after the updates of the last backward pass
        before = [(x, x.copy()) for parameter in self.running for x in parameter.list_data()]
        with mx.autograd.train_mode():
            outputs = [self._outputs(pictures, *piece) for piece in pieces]
        for x, value in before:
            x[:] = value
        return outputs

    def _outputs(self, pictures, device, rows):
        x = images.normalise(pictures[rows].as_in_context(device), self.recipe.mean, self.recipe.std)
        _, ranked, logits = self.net(x)
        return ranked + logits

    def _gathered(self, outputs):
        """The outputs of all pieces on the first device, detached: a list of (N, d) arrays."""
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
