"""Warnings about training problems that raise no error. Each is printed once."""

from collections import deque

from cgd.network.descriptors import MAX_P

LINES = 3  # consecutive log lines that must agree: a single batch says little


class Diagnostics:
    """Checks a run's log lines.

    recipe : recipes.Recipe · tell : function that prints a text
    """

    def __init__(self, recipe, tell):
        self.recipe, self.tell, self.told = recipe, tell, set()
        self.lines = deque(maxlen=LINES)

    def look(self, figures):
        """Checks one more log line of training figures; prints a warning where there is one."""
        self.lines.append(figures)
        if len(self.lines) == LINES:
            for kind in (self.collapse, self.power):
                text = None if kind in self.told else kind()
                if text:
                    self.told.add(kind)
                    self.tell("warning: iteration {}: {}".format(figures["iteration"], text))

    def collapse(self):
        """Contracted descriptors: all triplets active, and the hardest positives closer than half of the margin.

        The state that batch-hard mining can collapse into (Hermans et al., "In Defense of the Triplet Loss", 2017).
        """
        recipe = self.recipe
        if not recipe.ranking_weight or recipe.soft_margin:  # no margin to compare with
            return None
        if any(line["active_triplets"] < 0.99 or line["hardest_positive"] > recipe.margin / 2 for line in self.lines):
            return None
        return (
            "the triplet loss may have collapsed: it is {ranking_loss:.3f}, close to its margin {}; the hardest "
            "positives are {hardest_positive:.3f} apart, the hardest negatives {hardest_negative:.3f}. If this lasts, "
            "try a lower --lr, --freeze-batch-norm no, --soft-margin yes or a larger --batch-size"
        ).format(recipe.margin, **self.lines[-1])

    def power(self):
        """A learned p of GeM that stays at one of its bounds."""
        powers = [line.get("gem_p") for line in self.lines]
        if powers[0] not in (1.0, MAX_P) or len(set(powers)) > 1:
            return None
        return f"GeM's p stays at its bound {powers[0]}; try a lower --lr, or --learn-p no with a fixed --gem-p"
