"""The training loop: losses, learning rate, log, evaluation, checkpoints."""

import json
import math
import time
from pathlib import Path

from tqdm import tqdm

from cgd import checkpoints, evaluator, images, losses, model
from cgd.datasets import count_identities
from cgd.environment import mx
from cgd.errors import InputError
from cgd.samplers import IdentitySampler

LOG_EVERY = 10

# ImageNet's statistics, which the zoo's weights expect.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Trainer:
    """Trains a network on a data set by a recipe, into a folder.

    Parameters
    ----------
    net : model.CGD with a classifier for the data set's training identities
    dataset : datasets.Dataset
    recipe : recipes.Recipe
    folder : where log.jsonl and the checkpoints `best` and `last` go
    ctx : the device
    seed, num_workers : int
    unreadable : images.Unreadable, what to do about pictures that cannot be read
    """

    def __init__(self, net, dataset, recipe, folder, ctx, seed=0, num_workers=0, unreadable=None):
        self.net, self.dataset, self.recipe, self.ctx = net, dataset, recipe, ctx
        self.folder, self.seed, self.num_workers, self.unreadable = Path(folder), seed, num_workers, unreadable
        self.size = (recipe.image_width, recipe.image_height)
        self.identities = [record.identity for record in dataset.train]
        self.sampler = IdentitySampler(
            self.identities, recipe.batch_size, recipe.images_per_identity, seed, recipe.iterations
        )
        self.optimiser = mx.gluon.Trainer(
            net.collect_params(), "adam", {"learning_rate": recipe.lr, "wd": recipe.weight_decay}
        )
        self.iteration = 0
        self.best = None  # (recalls, iteration)
        self.recalls = None  # of the last evaluation

    def run(self, save_every=0):
        """Trains to the recipe's last iteration, evaluates, and returns (last recalls, best recalls, its iteration).

        Stopped by Ctrl-C, it leaves the checkpoint `last` as the network stood. Raises InputError when a loss is not
        finite.
        """
        recipe = self.recipe
        enlarged = tuple(round(side * recipe.enlarge) for side in self.size)
        view = images.TrainingView(self.dataset.train, self.size, enlarged)
        meter = Meter()
        with open(self.folder / "log.jsonl", "a") as log, tqdm(total=recipe.iterations, unit="it") as progress:
            try:
                for pictures, identities, readable in images.loader(
                    view, self.sampler, self.num_workers, self.unreadable
                ):
                    pictures, identities = only(readable, pictures, identities)
                    meter.add(*self.step(pictures, identities), len(identities))
                    progress.update()
                    progress.set_postfix_str(meter.text(self.learning_rate()), refresh=False)
                    if self.iteration % LOG_EVERY == 0 or self.iteration == recipe.iterations:
                        write_line(log, dict(iteration=self.iteration, lr=self.learning_rate(), **meter.take()))
                    if save_every and self.iteration % save_every == 0:
                        self.save("last")
                    if self.iteration % recipe.eval_every == 0 and self.iteration < recipe.iterations:
                        self.evaluate(log)
                        meter.restart()
            except KeyboardInterrupt:
                self.save("last")
                raise
            self.evaluate(log)
        self.save("last")
        return (self.recalls, *self.best)

    def step(self, pictures, identities):
        """One iteration on (N, H, W, 3) uint8 pictures: (ranking loss, classification loss), as floats."""
        recipe = self.recipe
        pictures = images.normalise(pictures.as_in_context(self.ctx), MEAN, STD)
        identities = mx.nd.array(identities, ctx=self.ctx)
        with mx.autograd.record():
            embeddings, logits = self.net(pictures)
            ranking = losses.batch_hard_triplet(embeddings, identities, recipe.margin)
            classification = losses.smoothed_softmax(logits, identities, recipe.temperature, recipe.smoothing)
            total = ranking + classification
        total.backward()
        self.optimiser.set_learning_rate(self.learning_rate())
        self.optimiser.step(1)  # the losses are means already
        values = ranking.asscalar(), classification.asscalar()
        self.iteration += 1
        if not all(map(math.isfinite, values)):
            raise InputError(
                "iteration {}: the ranking loss is {} and the classification loss {}; the run stops here. "
                "A lower --lr is the usual remedy".format(self.iteration, *values)
            )
        return values

    def learning_rate(self):
        """The rate of the next iteration: the recipe's, times its factor for each step that lies behind."""
        passed = sum(self.iteration >= step for step in self.recipe.lr_steps)
        return self.recipe.lr * self.recipe.lr_factor**passed

    def evaluate(self, log):
        """Recall@K of the test half; the checkpoint `best` is kept by the first of them."""
        ranks = self.dataset.ranks
        self.recalls = evaluator.evaluate(
            self.net.embed,
            self.dataset,
            evaluator.Preparation(self.size, MEAN, STD),
            self.ctx,
            self.recipe.batch_size,
            self.num_workers,
            self.unreadable,
            quiet=True,
        ).recalls
        write_line(log, {"iteration": self.iteration, "recall": dict(zip(map(str, ranks), self.recalls))})
        text = "  ".join("R@{} {:.4f}".format(k, recall) for k, recall in zip(ranks, self.recalls))
        tqdm.write("iteration {:5d}  {}".format(self.iteration, text))
        if self.best is None or self.recalls[0] > self.best[0][0]:
            self.best = (self.recalls, self.iteration)
            self.save("best")

    def save(self, name):
        """Writes the checkpoint `name`, with what an evaluation needs to know of it."""
        description = {
            "dataset": self.dataset.name,
            "cropped": self.dataset.train[0].box is not None,
            "image_width": self.size[0],
            "image_height": self.size[1],
            "mean": MEAN,
            "std": STD,
            "iteration": self.iteration,
            "recall": dict(zip(map(str, self.dataset.ranks), self.recalls)) if self.recalls else None,
        }
        checkpoints.save(self.net, str(self.folder / name), description)


class Meter:
    """Means of the losses, and images a second, since the last log line."""

    def __init__(self):
        self.restart()

    def restart(self):
        self.start, self.images, self.losses = time.time(), 0, []

    def add(self, ranking, classification, images):
        self.losses.append((float(ranking), float(classification)))
        self.images += images

    def means(self):
        ranking, classification = (sum(column) / len(self.losses) for column in zip(*self.losses))
        return ranking, classification, self.images / (time.time() - self.start)

    def text(self, lr):
        return "ranking {:.3f}, classification {:.3f}, lr {:.0e}, {:.0f} images/s".format(
            *self.means()[:2], lr, self.means()[2]
        )

    def take(self):
        """The figures for a log line; the next ones begin here."""
        ranking, classification, rate = self.means()
        self.restart()
        return {"ranking_loss": ranking, "classification_loss": classification, "images_per_second": rate}


def only(readable, pictures, identities):
    """The pictures and identities of a batch that could be read."""
    if readable.all():
        return pictures, identities
    if not readable.any():
        raise InputError("none of the pictures of a batch could be read")
    return mx.nd.array(pictures.asnumpy()[readable], dtype=pictures.dtype), identities[readable]


def write_line(log, figures):
    log.write(json.dumps(figures) + "\n")
    log.flush()


def build(recipe, dataset, ctx):
    """The network that a recipe asks for, with random weights, on a device, ready to train."""
    net = model.CGD(
        config=recipe.config,
        dim=recipe.dim,
        backbone=recipe.backbone,
        classes=count_identities(dataset.train),
        combine=recipe.combine,
        gem_p=recipe.gem_p,
    )
    net.initialize(ctx=ctx)
    net(mx.nd.zeros((1, 3, recipe.image_height, recipe.image_width), ctx=ctx))  # settles the shapes
    net.hybridize(static_alloc=True)
    return net
