"""What goes wrong in training without an error: told once each, with advice."""

from collections import deque

from cgd.network.descriptors import MAX_P

LINES = 3  # log lines that have to agree, for one batch may look like anything


class Diagnostics:
    """Looks at a run's log lines.

    recipe : recipes.Recipe · tell : function of a text, which shows it
    """

    def __init__(self, recipe, tell):
        self.recipe, self.tell, self.told = recipe, tell, set()
        self.lines = deque(maxlen=LINES)

    def look(self, figures):
        """figures : a log line with losses"""
        self.lines.append(figures)
        if len(self.lines) == LINES:
            for kind in (self.collapse, self.power):
                text = None if kind in self.told else kind()
                if text:
                    self.told.add(kind)
                    self.tell("warning: iteration {}: {}".format(figures["iteration"], text))

    def collapse(self):
        """The triplet loss's trap: all descriptors at one point. Each triplet breaks the margin, and always will.

        Seen as: all triplets active, and the hardest positives nearer than half of the margin.
        """
        recipe = self.recipe
        if not recipe.ranking_weight or recipe.soft_margin:  # without a margin there is nothing to compare with
            return None
        if any(line["active_triplets"] < 0.99 or line["hardest_positive"] > recipe.margin / 2 for line in self.lines):
            return None
        return (
            "the triplet loss has collapsed: it is {ranking_loss:.3f}, near its margin {}, and the hardest positives "
            "and negatives are {hardest_positive:.3f} and {hardest_negative:.3f} apart. Try a lower --lr, "
            "--freeze-batch-norm no, --soft-margin yes or a larger --batch-size".format(recipe.margin, **self.lines[-1])
        )

    def power(self):
        """A learned p of GeM that rests at one of its bounds."""
        powers = [line.get("gem_p") for line in self.lines]
        if powers[0] not in (1.0, MAX_P) or len(set(powers)) > 1:
            return None
        return "GeM's p has come to its bound {}; a lower --lr, or --learn-p no with a --gem-p of your choice".format(
            powers[0]
        )
