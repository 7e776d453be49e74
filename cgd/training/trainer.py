"""The training loop: batches, learning rate, log, evaluation, checkpoints."""

import math
import os
import sys
import time
from collections import namedtuple
from contextlib import contextmanager, suppress
from pathlib import Path

from tqdm import tqdm

from cgd.data import images
from cgd.data.datasets import count_identities
from cgd.data.loader import Loader
from cgd.data.samplers import IdentitySampler
from cgd.network import checkpoints, model, onednn
from cgd.network.options import OPTIONS
from cgd.retrieval import evaluation
from cgd.system.environment import large_enough, memory_for, mx
from cgd.system.errors import InputError, forget_stops, say, uninterrupted
from cgd.training import state
from cgd.training.diagnostics import Diagnostics
from cgd.training.meter import Meter, write_line
from cgd.training.objective import Objective
from cgd.training.optimiser import Optimiser
from cgd.training.recipes import check

LOG_EVERY = 10
# Between saves of the state, unless --save-every gives a number of iterations. On several machines a process that loses
# its peers ends at once, without a save.
SAVE_SECONDS, SAVE_SECONDS_CLUSTER = 600, 60

# training : Loader of augmented pictures · evaluator : evaluation.Evaluator
Loaders = namedtuple("Loaders", "training evaluator")


def loaders(dataset, recipe, num_workers=0, eval_batch_size=32, unreadable=None):
    """The loaders of a run. Their processes are forked here: before the network is built and the GPU is used."""
    size = (recipe.image_width, recipe.image_height)
    resized = (recipe.resize_size, round(recipe.resize_size * recipe.image_height / recipe.image_width))
    check(recipe)
    view = images.TrainingView(dataset.train, size, resized, recipe.direct_resize_prob)
    return Loaders(
        Loader(view, recipe.batch_size, num_workers, unreadable),
        evaluator(dataset, recipe, num_workers, eval_batch_size, unreadable),
    )


def evaluator(dataset, recipe, num_workers, eval_batch_size, unreadable):
    """The `evaluation.Evaluator` of a run. Its processes are forked here."""
    preprocessing = evaluation.Preprocessing((recipe.image_width, recipe.image_height), recipe.mean, recipe.std)
    return evaluation.Evaluator(dataset, preprocessing, eval_batch_size, num_workers, unreadable)


def build(recipe, dataset, devices):
    """The network that a recipe asks for, with random weights, on its devices, ready to train."""
    classes = count_identities(dataset.train) if recipe.classification_weight else 0
    net = model.CGD(classes=classes, **{name: getattr(recipe, name) for name in OPTIONS})
    with large_enough((recipe.image_width, recipe.image_height)):
        net.infer_shape(mx.nd.zeros((1, 3, recipe.image_height, recipe.image_width)))
    on_cpu = devices[0].device_type == "cpu"
    if on_cpu:
        onednn.for_training(net)
    net.initialize(ctx=devices)
    # With static shapes, several CPU contexts would mix up their running statistics of batch norm.
    net.hybridize(static_alloc=True, static_shape=on_cpu and len(devices) == 1)
    return net


class NotFinite(InputError):
    """A loss or a gradient is not finite."""


class Trainer:
    """Trains `net` by a recipe; writes logs and checkpoints to `folder`.

    Parameters
    ----------
    net : model.CGD in its training form, for the data set's training identities
    dataset : datasets.Dataset
    recipe : recipes.Recipe
    folder : where log.jsonl, state.npz and the checkpoints `best` and `last` are written
    devices : list of mx.Context (see objective.Objective for how they share a batch)
    own_loaders : Loaders, or None for ones without processes
    seed : int
    store : the kvstore of several machines (cgd/training/cluster.py), or None. Each worker mines the hardest triplets
        in its own batches. The first worker leads: it alone evaluates and writes into the folder.
    micro_batch : images that a device trains on at a time at most, or None (see objective.Objective)
    """

    def __init__(self, net, dataset, recipe, folder, devices, own_loaders=None, seed=0, store=None, micro_batch=None):
        self.net, self.dataset, self.recipe, self.devices = net, dataset, recipe, devices
        self.folder, self.loaders = Path(folder), own_loaders or loaders(dataset, recipe)
        self.leads = store is None or store.rank == 0
        self.sampler = IdentitySampler(
            [record.identity for record in dataset.train],
            recipe.batch_size,
            recipe.images_per_identity,
            seed,
            stop=recipe.iterations,
            worker=(store.rank, store.num_workers) if store else (0, 1),
        )
        if recipe.freeze_batch_norm:
            net.freeze_batch_norm()
            if devices[0].device_type == "cpu":
                onednn.fold_frozen_batch_norm(net)
        for parameter in net.features.collect_params().values():
            parameter.lr_mult = recipe.backbone_lr_mult
        self.objective = Objective(net, recipe, devices, micro_batch)
        self.optimiser = Optimiser(net.collect_params(), recipe, store)
        self.diagnostics = Diagnostics(recipe, lambda text: tqdm.write(text, file=sys.stderr))
        self.meter = Meter()
        self.iteration = 0
        self.updating = False  # during an update parameters and iteration do not belong together
        self.updated = False  # by this process
        self.saved_at, self.save_seconds = time.time(), SAVE_SECONDS_CLUSTER if store else SAVE_SECONDS
        self.evaluated = None  # the iteration of the last evaluation
        self.best = None  # (recalls, iteration)
        self.recalls = None  # of the last evaluation

    def run(self, save_every=None):
        """Trains to the recipe's last iteration, evaluates, and returns (last recalls, best recalls, its iteration).

        A worker that does not lead returns None.

        Saves its state at each evaluation, and every `save_every` iterations, by default every SAVE_SECONDS. If a stop
        or an error ends it early, it saves its state and the checkpoint `last` as of the last completed iteration; an
        error within an iteration may have updated the running statistics of batch norm. Raises InputError if memory
        runs out, and NotFinite if a loss or a gradient is not finite; the state that was saved before is then kept.
        """
        self.sampler.start = self.iteration
        with self._open_log() as log, self._progress() as progress:
            try:
                with memory_for(self._memory_advice()):
                    self._train(log, progress, save_every)
                    self._evaluate_once(log)
                    self._save_state(log)
                    self.save("last")
            except BaseException as error:
                if not self.updating and not isinstance(error, NotFinite):
                    self._save_after_error(log)
                raise
        return (self.recalls, *self.best) if self.leads else None

    @contextmanager
    def _open_log(self):
        log = open(self.folder / "log.jsonl" if self.leads else os.devnull, "a")
        try:
            yield log
        finally:
            with suppress(OSError):  # a full disk, which `write_line` has reported
                log.close()

    def _progress(self):
        return tqdm(total=self.recipe.iterations, initial=self.iteration, unit="it", disable=not self.leads)

    def _train(self, log, progress, save_every):
        meter = self.meter
        if self._evaluation_is_due():  # stopped between this iteration and its evaluation
            self._evaluate_once(log)
        meter.restart_clock()
        for pictures, identities, readable in meter.timed(self.loaders.training.batches(self.sampler)):
            with uninterrupted():
                lr = self.optimiser.learning_rate(self.iteration)
                logged = (self.iteration + 1) % LOG_EVERY == 0 or self.iteration + 1 == self.recipe.iterations
                meter.add(self.step(*only(readable, pictures, identities), with_norm=logged), len(identities))
                text = meter.text(lr)
                if logged:
                    figures = dict(iteration=self.iteration, lr=lr, **meter.take())
                    write_line(log, figures)
            # Printed where a stop can interrupt it: the reader of a pipe may have stalled.
            progress.set_postfix_str(text, refresh=False)
            progress.update()
            if logged and self.leads:
                self.diagnostics.look(figures)
            if self._evaluation_is_due():
                self._evaluate_once(log)
                self._save_state(log)
                meter.restart_clock()
            elif self._save_is_due(save_every):
                self._save_state(log)

    def step(self, pictures, identities, with_norm=False):
        """One iteration on (N, H, W, 3) uint8 pictures. Returns {name: float}: both losses, and what else is logged.

        with_norm : also the norm of the gradient over all parameters

        Raises NotFinite for a loss or a gradient that is not finite, before any parameter is updated. A parameter that
        is NaN can leave the losses finite: on a CPU, oneDNN's ReLU of NaN is 0.
        """
        total, values = self.objective.backward(pictures, identities)
        if not math.isfinite(total):
            text = "the ranking loss is {ranking_loss} and the classification loss {classification_loss}"
            raise self._not_finite(text.format(**values))
        if not self.optimiser.gradients_are_finite():
            raise self._not_finite("the losses are finite, but a gradient is not")
        self.updating = True
        norm = self.optimiser.step(self.iteration, with_norm)
        if with_norm:
            values["gradient_norm"] = norm
        self.net.clamp_p()
        if with_norm and self.recipe.learn_p and "G" in self.recipe.config:
            values["gem_p"] = self.net.gem_p()
        if not self.updated:
            mx.nd.waitall()  # the first update allocates Adam's moments: an error is raised here, where none is saved
            self.updated = True
        self.iteration += 1
        self.updating = False
        return values

    def _not_finite(self, what):
        return NotFinite(f"iteration {self.iteration + 1}: {what}; training stops. Try a new run with a lower --lr")

    def _memory_advice(self):
        half = self.objective.largest_piece(self.recipe.batch_size) // 2
        several = "" if self.devices[0].device_type == "cpu" else "on several devices, --gpus N,N, or "
        if half < 2:
            return f"resume {several or 'where there is more memory, or '}start a new run with smaller images"
        return f"resume {several}with --micro-batch {half}"

    def _evaluation_is_due(self):
        due = self.iteration % self.recipe.eval_every == 0 and 0 < self.iteration < self.recipe.iterations
        return due and self.evaluated != self.iteration

    def _evaluate_once(self, log):
        if self.leads and self.evaluated != self.iteration:
            self.evaluate(log)

    def evaluate(self, log):
        """Recall@K. Saves the checkpoint `best` if the recall at the smallest K has improved."""
        ranks = self.dataset.ranks
        half = max(1, self.loaders.evaluator.extractor.batch_size // 2)
        mx.nd.waitall()  # so that an error of the training comes here, and not with this advice:
        with memory_for(f"try --eval-batch-size {half}"):
            size = self.recipe.image_width, self.recipe.image_height
            embed = checkpoints.inference(self.net, self.devices[0], size)
            recalls = self.loaders.evaluator(embed, self.devices[0]).recalls
        with uninterrupted():
            write_line(log, {"iteration": self.iteration, "recall": dict(zip(map(str, ranks), recalls))})
            self.recalls, self.evaluated = recalls, self.iteration
            self.meter.restart()
            first = ranks.index(min(ranks))
            if self.best is None or recalls[first] > self.best[0][first]:
                self.best = (recalls, self.iteration)
                self.save("best")
        tqdm.write(f"iteration {self.iteration:5d}  {recall_text(ranks, recalls)}")

    def save(self, name):
        """Writes the checkpoint `name` with its description, if this worker leads."""
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
            "recall_of": self.dataset.tested if known else None,
        }
        checkpoints.save(self.net, str(self.folder / name), description)

    def _save_is_due(self, save_every):
        if save_every is None:
            return time.time() - self.saved_at > self.save_seconds
        return save_every and self.iteration % save_every == 0

    def _save_state(self, log):
        if self.leads:
            state.save(self, log)

    def _save_after_error(self, log):
        forget_stops()  # or what follows would be interrupted once more by the stop that led here
        # Other operators may have failed with the first one: MXNet raises their errors here, and then forgets them.
        # Nothing that they should have written is saved, for these are activations and gradients: updates and copies
        # of the state are waited for where they are made.
        try:
            with uninterrupted():
                with suppress(mx.base.MXNetError):
                    mx.nd.waitall()
                self._save_state(log)
                self.save("last")
                forget_stops()  # the run ends anyway
            if self.leads:  # not above: where nobody reads, only a stop ends the writing
                say(f"\nstate saved at iteration {self.iteration}; continue with train.py --resume {self.folder}")
        except Exception as error:  # the first error is the one to report
            say(f"the state could not be saved: {error}")


def recall_text(ranks, recalls):
    return "  ".join(f"R@{k} {recall:.4f}" for k, recall in zip(ranks, recalls))


def only(readable, pictures, identities):
    """The pictures and identities of a batch that could be read."""
    if readable.all():
        return pictures, identities
    if not readable.any():
        raise InputError("none of the images of a batch could be read")
    return mx.nd.array(pictures.asnumpy()[readable], dtype=pictures.dtype), identities[readable]
