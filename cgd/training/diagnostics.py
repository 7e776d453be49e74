"""Warnings about training problems that raise no error. Each is printed once."""

import json
from collections import deque
from contextlib import suppress

from cgd.network.options import MAX_P

LINES = 3  # consecutive log lines that must agree: a single batch says little
COURSE = 10  # log lines whose mean ratio of distances is compared with that of earlier ones
VANISHED = 1e-4  # a distance between unit vectors at which float32 has few digits left
FALL = 0.02  # of that ratio: several times the noise of a mean of COURSE lines


class Diagnostics:
    """Checks a run's log lines.

    recipe : recipes.Recipe · tell : function that prints a text
    """

    def __init__(self, recipe, tell):
        self.recipe, self.tell, self.told = recipe, tell, set()
        self.lines = deque(maxlen=LINES)
        self.latest = deque(maxlen=COURSE)  # ratios of hardest positive to hardest negative
        self.means = []  # of the ratios of COURSE consecutive lines

    def catch_up(self, lines):
        """Looks at the log lines of a run to be resumed, without a warning: they have been printed then."""
        tell, self.tell = self.tell, lambda text: None
        for line in lines:
            with suppress(ValueError, KeyError, TypeError):  # evaluations; what an editor has left
                self.look(json.loads(line))
        self.tell = tell

    def look(self, figures):
        """Checks one more log line of training figures; prints a warning where there is one."""
        self.latest.append(figures["hardest_positive"] / max(figures["hardest_negative"], 1e-12))
        self.lines.append(figures)
        if len(self.latest) == COURSE:
            self.means.append(sum(self.latest) / COURSE)
        if len(self.lines) == LINES:
            for kind in (self.collapse, self.power):
                text = None if kind in self.told else kind()
                if text:
                    self.told.add(kind)
                    self.tell("warning: iteration {}: {}".format(figures["iteration"], text))

    def collapse(self):
        """Contracted descriptors, and no sign that they still get better.

        Contracted: all triplets are active, and the hardest positives are closer than half of the margin. Batch-hard
        mining can collapse into this state (Hermans et al., "In Defense of the Triplet Loss", 2017). But recall does
        not depend on the scale: as long as the ratio of hardest positive to hardest negative falls, ranks improve.
        """
        recipe = self.recipe
        if not recipe.ranking_weight or recipe.soft_margin:  # no margin to compare with
            return None
        if any(line["active_triplets"] < 0.99 or line["hardest_positive"] > recipe.margin / 2 for line in self.lines):
            return None
        if len(self.means) <= COURSE:
            return None
        before, now, best = self.means[0], self.means[-1], min(self.means)
        improved = now < before - FALL and now < best + FALL
        if improved and self.lines[-1]["hardest_positive"] > VANISHED:
            return None
        return (
            "the triplet loss may have collapsed: at a margin of {}, the hardest positives are {hardest_positive:.3g} "
            "apart, the hardest negatives {hardest_negative:.3g}. Their ratio is {:.2f}; at the start it was {:.2f}, "
            "at best {:.2f}. Try a lower --lr, --freeze-batch-norm no, --soft-margin yes or a larger --batch-size"
        ).format(recipe.margin, now, before, best, **self.lines[-1])

    def power(self):
        """A learned p of GeM that stays at one of its bounds."""
        powers = [line.get("gem_p") for line in self.lines]
        if powers[0] not in (1.0, MAX_P) or len(set(powers)) > 1:
            return None
        return f"GeM's p stays at its bound {powers[0]}; try a lower --lr, or --learn-p no with a fixed --gem-p"
