"""The training loop: losses, learning rate, log, evaluation, checkpoints, and going on after any stop."""

import json
import math
import os
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cgd import checkpoints, evaluator, images, losses, model
from cgd.datasets import count_identities
from cgd.environment import memory_for, mx
from cgd.errors import InputError, uninterrupted
from cgd.loader import Loader
from cgd.optimiser import Optimiser
from cgd.parameters import read_state, write_state
from cgd.samplers import IdentitySampler
from cgd.troubles import Troubles

LOG_EVERY = 10
SAVE_SECONDS = 600  # between saves of what --resume needs, unless --save-every says so many iterations

# training : Loader of augmented pictures · evaluator : evaluator.Evaluator
Loaders = namedtuple("Loaders", "training evaluator")


def loaders(dataset, recipe, num_workers=0, eval_batch_size=32, unreadable=None):
    """The loaders of a run, whose processes are forked here: before the network is built, and the GPU is used."""
    size = (recipe.image_width, recipe.image_height)
    enlarged = tuple(round(side * recipe.enlarge) for side in size)
    view = images.TrainingView(dataset.train, size, enlarged, recipe.straight)
    preparation = evaluator.Preparation(size, recipe.mean, recipe.std)
    return Loaders(
        Loader(view, recipe.batch_size, num_workers, unreadable),
        evaluator.Evaluator(dataset, preparation, eval_batch_size, num_workers, unreadable),
    )


class Trainer:
    """Trains a network on a data set by a recipe, into a folder.

    With several devices each takes its share of a batch; their descriptors are gathered, the hardest triplets are found
    in the whole batch, and the gradients go back to each, as if it were one device. But for batch norm: each device
    normalises by the statistics of its own share, and the running statistics, which evaluation and checkpoints use, are
    the first device's. The images of an identity are spread over the devices, so that the shares are alike.

    Parameters
    ----------
    net : model.CGD in its training form, for the data set's training identities
    dataset : datasets.Dataset
    recipe : recipes.Recipe
    folder : where log.jsonl, state.npz and the checkpoints `best` and `last` go
    devices : list of mx.Context
    loaders : Loaders, or None for ones without processes
    seed : int
    store : the kvstore of several machines (cgd/cluster.py), or None. Each of its workers finds the hardest triplets in
        batches of its own; the first of them leads: it alone writes into the folder, and evaluates.
    """

    def __init__(self, net, dataset, recipe, folder, devices, own_loaders=None, seed=0, store=None):
        self.net, self.dataset, self.recipe, self.devices = net, dataset, recipe, devices
        self.folder, self.loaders = Path(folder), own_loaders or loaders(dataset, recipe)
        self.identities = [record.identity for record in dataset.train]
        self.leads = store is None or store.rank == 0
        self.sampler = IdentitySampler(
            self.identities,
            recipe.batch_size,
            recipe.images_per_identity,
            seed,
            stop=recipe.iterations,
            worker=(store.rank, store.num_workers) if store else (0, 1),
        )
        if recipe.freeze_batch_norm:
            net.freeze_batch_norm()
        for parameter in net.features.collect_params().values():
            parameter.lr_mult = recipe.backbone_lr
        self.optimiser = Optimiser(net.collect_params(), recipe, store)
        self.troubles = Troubles(recipe, lambda text: tqdm.write(text, file=sys.stderr))
        self.iteration = 0
        self.in_step = False  # then parameters and iteration do not belong together
        self.kept = time.time()  # when the state was last written
        self.evaluated = None  # the iteration of the last evaluation
        self.best = None  # (recalls, iteration)
        self.recalls = None  # of the last evaluation

    def run(self, save_every=None):
        """Trains to the recipe's last iteration, evaluates, and returns (last recalls, best recalls, its iteration).

        A worker that does not lead has no recalls: None.

        Keeps its state at each evaluation, and each `save_every` iterations, or by default each SAVE_SECONDS. Whatever
        ends it before, a stop or an error, it leaves its state and the checkpoint `last`, as of the last iteration that
        was completed. Raises InputError when a loss is not finite: then what was saved before stays.
        """
        self.sampler.start = self.iteration
        with open(self.folder / "log.jsonl" if self.leads else os.devnull, "a") as log, self._progress() as progress:
            try:
                self._train(log, progress, save_every)
                self._evaluate_once(log)
                self._keep(log)
                self.save("last")
            except BaseException:
                self._keep_in_spite_of_an_error(log)
                raise
        return (self.recalls, *self.best) if self.leads else None

    def _keep_in_spite_of_an_error(self, log):
        if self.in_step:
            return
        try:
            with uninterrupted():
                self._keep(log)
                self.save("last")
        except Exception as error:  # the first error is the one to report
            print("the state could not be saved: {}".format(error), file=sys.stderr)

    def _progress(self):
        return tqdm(total=self.recipe.iterations, initial=self.iteration, unit="it", disable=not self.leads)

    def _train(self, log, progress, save_every):
        meter = Meter()
        if self._evaluation_is_due():  # stopped between this iteration and its evaluation
            self._evaluate_once(log)
        for pictures, identities, readable in meter.waiting(self.loaders.training.batches(self.sampler)):
            with uninterrupted():
                rate = self.optimiser.learning_rate(self.iteration)
                logged = (self.iteration + 1) % LOG_EVERY == 0 or self.iteration + 1 == self.recipe.iterations
                meter.add(self.step(*only(readable, pictures, identities), with_norm=logged), len(identities))
                text = meter.text(rate)
                if logged:
                    figures = dict(iteration=self.iteration, lr=rate, **meter.take())
                    write_line(log, figures)
                    self.troubles.look(figures)
                progress.set_postfix_str(text, refresh=False)
                progress.update()
            if self._evaluation_is_due():
                self._evaluate_once(log)
                self._keep(log)
                meter.restart()
            elif self._save_is_due(save_every):
                self._keep(log)

    def _save_is_due(self, save_every):
        if save_every is None:
            return time.time() - self.kept > SAVE_SECONDS
        return save_every and self.iteration % save_every == 0

    def step(self, pictures, identities, with_norm=False):
        """One iteration on (N, H, W, 3) uint8 pictures: {name: float}, the two losses and what else there is to know.

        with_norm : also the norm of all gradients, over all parameters

        Raises InputError for a loss that is not finite, before anything is updated, and when memory runs out.
        """
        self.in_step = True
        with memory_for(self._smaller_batch()):
            outputs = []
            with mx.autograd.record():
                for device, part in zip(self.devices, self._parts()):
                    pixels = pictures[part].as_in_context(device)
                    _, ranked, logits = self.net(images.normalise(pixels, self.recipe.mean, self.recipe.std))
                    outputs.append(ranked + logits)
            total, values = self._losses(outputs, np.concatenate([identities[part] for part in self._parts()]))
            if not math.isfinite(total):
                raise InputError(
                    "iteration {}: the ranking loss is {} and the classification loss {}; the run stops here. A lower "
                    "--lr is the usual remedy".format(
                        self.iteration + 1, values["ranking_loss"], values["classification_loss"]
                    )
                )
            norm = self.optimiser.step(self.iteration, with_norm)
        if with_norm:
            values["gradient_norm"] = norm
        self.net.bound_p()
        if with_norm and self.recipe.learn_p and "G" in self.recipe.config:
            values["gem_p"] = self.net.gem_p()
        self.iteration += 1
        self.in_step = False
        return values

    def _smaller_batch(self):
        recipe = self.recipe
        half = max(1, recipe.batch_size // recipe.images_per_identity // 2) * recipe.images_per_identity
        return "try --batch-size {}, or several devices, --gpus N,N".format(half)

    def _parts(self):
        """The share of a batch of each device, as slices. The images of an identity follow one another in a batch."""
        return [slice(first, None, len(self.devices)) for first in range(len(self.devices))]

    def _losses(self, outputs, identities):
        """Both losses of what all devices gave, over the whole batch; their gradients go back through each device.

        outputs : a list of (n, d) arrays for each device · identities : (N,) array, in the devices' order
        -> the total, as a float, and {name: float}
        """
        recipe, home = self.recipe, self.devices[0]
        gathered = [mx.nd.concat(*[x.as_in_context(home) for x in same], dim=0).detach() for same in zip(*outputs)]
        for x in gathered:
            x.attach_grad()
        identities = mx.nd.array(identities, ctx=home)
        zero = mx.nd.zeros(1, ctx=home)
        with mx.autograd.record():
            ranked = gathered[: len(gathered) - bool(self.net.classifier)]
            each = [
                losses.batch_hard_triplet(x, identities, recipe.margin, recipe.soft_margin, recipe.squared)
                for x in ranked
            ]
            ranking = sum((loss for loss, _ in each), zero)
            classification = zero
            if self.net.classifier:
                logits = gathered[-1]
                classification = losses.smoothed_softmax(logits, identities, recipe.temperature, recipe.smoothing)
            total = recipe.ranking_weight * ranking + recipe.classification_weight * classification
        total.backward()
        first = 0
        for device, own in zip(self.devices, outputs):
            share = slice(first, first + len(own[0]))
            mx.autograd.backward(own, [x.grad[share].as_in_context(device) for x in gathered])
            first = share.stop
        values = {"ranking_loss": ranking.asscalar(), "classification_loss": classification.asscalar()}
        for name, facts in zip(losses.Hardest._fields, zip(*(facts for _, facts in each))):
            values[name] = sum(fact.asscalar() for fact in facts) / len(facts)
        return float(total.asscalar()), {name: float(value) for name, value in values.items()}

    def _evaluation_is_due(self):
        due = self.iteration % self.recipe.eval_every == 0 and 0 < self.iteration < self.recipe.iterations
        return due and self.evaluated != self.iteration

    def _evaluate_once(self, log):
        if self.leads and self.evaluated != self.iteration:
            self.evaluate(log)

    def evaluate(self, log):
        """Recall@K of the test half; the checkpoint `best` is kept by the one at the smallest K."""
        ranks = self.dataset.ranks
        half = max(1, self.loaders.evaluator.extractor.batch_size // 2)
        with memory_for("try --eval-batch-size {}".format(half)):
            self.recalls = self.loaders.evaluator(self.net.embed, self.devices[0], quiet=not self.leads).recalls
        with uninterrupted():
            write_line(log, {"iteration": self.iteration, "recall": dict(zip(map(str, ranks), self.recalls))})
            text = "  ".join("R@{} {:.4f}".format(k, recall) for k, recall in zip(ranks, self.recalls))
            tqdm.write("iteration {:5d}  {}".format(self.iteration, text))
            self.evaluated = self.iteration
            first = ranks.index(min(ranks))
            if self.best is None or self.recalls[first] > self.best[0][first]:
                self.best = (self.recalls, self.iteration)
                self.save("best")

    def save(self, name):
        """Writes the checkpoint `name`, with what an evaluation needs to know of it; if this worker leads."""
        if not self.leads:
            return
        known = self.evaluated == self.iteration
        description = {
            "dataset": self.dataset.name,
            "cropped": self.dataset.train[0].box is not None,
            "image_width": self.recipe.image_width,
            "image_height": self.recipe.image_height,
            "mean": self.recipe.mean,
            "std": self.recipe.std,
            "iteration": self.iteration,
            "recall": dict(zip(map(str, self.dataset.ranks), self.recalls)) if known else None,
        }
        checkpoints.save(self.net, str(self.folder / name), description)

    def _keep(self, log):
        """Writes all that it takes to go on: parameters, the optimiser's moments and counts, scores, the log's length.

        One file, so that its parts belong together. Batches and augmentation have no state: they are functions of the
        seed and the iteration.
        """
        if not self.leads:
            return
        mx.nd.waitall()
        log.flush()
        os.fsync(log.fileno())
        arrays, steps = self.optimiser.state()
        for name, parameter in self.net.collect_params().items():
            arrays["parameter:" + name] = parameter.data(self.devices[0])
        facts = {
            "iteration": self.iteration,
            "updates": steps,
            "evaluated": self.evaluated,
            "best": self.best,
            "recalls": self.recalls,
            "log_length": log.tell(),
        }
        write_state(self.folder / "state.npz", arrays, facts)
        self.kept = time.time()

    def restore(self):
        """Goes back to the state that the folder holds, or to the beginning where it holds none; the log, too.

        Raises InputError for a state that is broken or of another network.
        """
        file, log = self.folder / "state.npz", self.folder / "log.jsonl"
        if self.leads:
            for part in self.folder.glob(".part-*"):  # what a kill left half written
                part.unlink()
        if not file.exists():
            if self.leads:
                log.write_text("")
            return
        arrays, facts = read_state(file)
        parameters = {"parameter:" + name: p for name, p in self.net.collect_params().items()}
        moments = {name: value for name, value in arrays.items() if name.startswith("moment")}
        model.set_parameters(parameters, {name: arrays[name] for name in arrays if name not in moments}, file)
        self.optimiser.restore(moments, facts["updates"])
        self.iteration, self.evaluated, self.recalls = facts["iteration"], facts["evaluated"], facts["recalls"]
        self.best = tuple(facts["best"]) if facts["best"] else None
        if self.leads:
            with open(log, "rb+") as lines:
                lines.truncate(facts["log_length"])


class Meter:
    """Means of what a step gives, images a second and the share of the time spent waiting, since the last log line."""

    def __init__(self):
        self.restart()

    def restart(self):
        self.start, self.waited, self.images, self.values = time.time(), 0.0, 0, []

    def waiting(self, batches):
        """The same batches; the time each takes to come counts as waiting."""
        batches = iter(batches)
        while True:
            start = time.time()
            batch = next(batches, None)
            self.waited += time.time() - start
            if batch is None:
                return
            yield batch

    def add(self, values, images):
        self.values.append(values)
        self.images += images

    def means(self):
        """{name: mean}, over the steps that gave it."""
        columns = {}
        for values in self.values:
            for name, value in values.items():
                columns.setdefault(name, []).append(value)
        return {name: sum(column) / len(column) for name, column in columns.items()}

    def text(self, lr):
        means = self.means()
        return "ranking {:.3f}, classification {:.3f}, lr {:.0e}, {:.0f} images/s".format(
            means["ranking_loss"], means["classification_loss"], lr, self.images / (time.time() - self.start)
        )

    def take(self):
        """The figures for a log line; the next ones begin here."""
        seconds = time.time() - self.start
        figures = dict(self.means(), images_per_second=self.images / seconds, waiting=self.waited / seconds)
        self.restart()
        return figures


def only(readable, pictures, identities):
    """The pictures and identities of a batch that could be read."""
    if readable.all():
        return pictures, identities
    if not readable.any():
        raise InputError("none of the pictures of a batch could be read")
    return mx.nd.array(pictures.asnumpy()[readable], dtype=pictures.dtype), identities[readable]


def write_line(log, figures):
    try:
        log.write(json.dumps(figures) + "\n")
        log.flush()
    except OSError as error:
        raise InputError("{}: cannot be written ({})".format(log.name, error.strerror))


def build(recipe, dataset, devices):
    """The network that a recipe asks for, with random weights, on its devices, ready to train."""
    classes = count_identities(dataset.train) if recipe.classification_weight else 0
    net = model.CGD(classes=classes, **{name: getattr(recipe, name) for name in model.OPTIONS})
    net.infer_shape(mx.nd.zeros((1, 3, recipe.image_height, recipe.image_width)))
    net.initialize(ctx=devices)
    net.hybridize(static_alloc=True)
    return net
