"""Plots of a study's results: the configurations, and Recall@K against the dimensions of the descriptor."""

import math

from cgd.system.errors import InputError
from cgd.system.files import replacing
from cgd.tables.results import first_rank


def figure_of(width, height):
    try:
        from matplotlib.figure import Figure  # not pyplot: no window, no state
    except ImportError:
        raise InputError("--plot needs matplotlib: pip install matplotlib 'numpy<2'")
    return Figure(figsize=(width, height), layout="constrained")


def configurations(record, file):
    """A point for each seed and a line at the mean, for each configuration, in the table's order."""
    rows = [row for row in record["tables"]["configurations"]["rows"] if row["runs"]]
    figure = figure_of(9, 4.5)
    axes = figure.subplots()
    for place, row in enumerate(rows):
        scores = [100 * score for score in first_rank(row)]
        axes.plot([place] * len(scores), scores, "o", color="C0", alpha=0.7)
        axes.hlines(sum(scores) / len(scores), place - 0.3, place + 0.3, color="C1", linewidth=2)
    low, high = axes.get_ylim()
    axes.set_ylim(math.floor(low), math.ceil(high))
    axes.set_xticks(range(len(rows)), [row["name"] for row in rows])
    axes.set_ylabel("R@{} in %".format(record["ranks"][0]))
    axes.text(0.01, 0.97, "points: seeds, line: mean", transform=axes.transAxes, va="top", fontsize=9)
    axes.set_title("configurations on {}".format(record["name"]))
    axes.grid(axis="y", alpha=0.3)
    with replacing(file) as part:
        figure.savefig(str(part))


def dimensions(record, file):
    """A line for each K, with the standard deviation over seeds as error bars."""
    rows = [row for row in record["tables"]["dimensions"]["rows"] if row["runs"]]
    sizes = [int(row["name"]) for row in rows]
    figure = figure_of(7, 4.5)
    axes = figure.subplots()
    for k in record["ranks"]:
        means, deviations = zip(*(row["last"][k] for row in rows))
        axes.errorbar(
            sizes,
            [100 * mean for mean in means],
            [100 * (deviation or 0) for deviation in deviations],
            marker="o",
            capsize=3,
            label="R@" + k,
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, map(str, sizes))
    axes.set_xlabel("dimensions of the descriptor")
    axes.set_ylabel("recall in %")
    axes.set_title("dimensions of the descriptor on {}".format(record["name"]))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    axes.grid(alpha=0.3)
    with replacing(file) as part:
        figure.savefig(str(part))


PLOTS = {"configurations": configurations, "dimensions": dimensions}


def draw(record, folder):
    """Draws the plots that the study has runs for. Returns their files."""
    files = []
    for name, plot in PLOTS.items():
        if name in record["tables"] and any(row["runs"] for row in record["tables"][name]["rows"]):
            files.append(folder / "{}-{}.png".format(record["name"], name))
            plot(record, files[-1])
    return files
