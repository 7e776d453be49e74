"""A run's log as a table, and as curves if matplotlib is installed.

python -m cgd.training.curves runs/demo-MG-1
"""

import json
from pathlib import Path

from cgd.system import errors
from cgd.system.errors import InputError
from cgd.system.files import replacing

LOGGED = "lr ranking_loss classification_loss active_triplets hardest_positive hardest_negative gradient_norm data_time"
COLUMNS = (*LOGGED.split()[:-2], "ratio", *LOGGED.split()[-2:])  # ratio: hardest positive / hardest negative
PANELS = (
    ("ranking loss", ("ranking_loss",)),
    ("classification loss", ("classification_loss",)),
    ("hardest distances", ("hardest_positive", "hardest_negative")),
    ("hardest positive / hardest negative", ("ratio",)),
    ("share of active triplets", ("active_triplets",)),
    ("norm of the gradients", ("gradient_norm",)),
    ("share of time spent waiting for data", ("data_time",)),
)


def read_log(folder):
    """(training lines, evaluation lines) of a run's log.jsonl. Raises InputError for any other file."""
    file = Path(folder) / "log.jsonl"
    try:
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        steps = [line for line in lines if "lr" in line]
        looks = [line for line in lines if "recall" in line]
        for line in lines:  # what the table and the curves read
            [float(value) for value in (line["iteration"], *line.get("recall", {}).values())]
        for line in steps:
            [float(line[name]) for name in LOGGED.split()]
            line["ratio"] = line["hardest_positive"] / max(line["hardest_negative"], 1e-12)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: not the log of a run ({error})")
    return steps, looks


def summary(steps, looks):
    """A table, as text. For each evaluation: learning rate, means since the previous one, recall at the smallest K."""
    rank = min(looks[-1]["recall"], key=int) if looks else "1"
    rows, before = [("iteration",) + COLUMNS + ("R@" + rank,)], 0
    for look in looks:
        since = [line for line in steps if before < line["iteration"] <= look["iteration"]]
        means = [sum(line[name] for line in since) / len(since) if since else None for name in COLUMNS]
        means[0] = since[-1]["lr"] if since else None
        texts = ["-" if mean is None else f"{mean:.4g}" for mean in means]
        rows.append((str(look["iteration"]), *texts, "{:.4f}".format(look["recall"][rank])))
        before = look["iteration"]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(row, widths)) for row in rows)


def draw(steps, looks, file):
    """Draws the curves. Returns False if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure  # not pyplot: no window, no state
    except ImportError:
        return False
    figure = Figure(figsize=(10, 13), layout="constrained")
    axes = figure.subplots(5, 2).ravel()
    for (title, names), panel in zip(PANELS, axes):
        for name in names:
            panel.plot([line["iteration"] for line in steps], [line[name] for line in steps], label=name)
        panel.set_title(title)
        if len(names) > 1:
            panel.legend()
    panel = axes[len(PANELS)]
    panel.set_title("learning rate")
    panel.plot([line["iteration"] for line in steps], [line["lr"] for line in steps], drawstyle="steps-post")
    panel.set_yscale("log")
    panel = axes[len(PANELS) + 1]
    panel.set_title("recall")
    for rank in looks[-1]["recall"] if looks else ():
        panel.plot(
            [look["iteration"] for look in looks],
            [look["recall"][rank] for look in looks],
            marker="o",
            label="R@" + rank,
        )
        panel.legend(loc="upper left")
    for number, panel in enumerate(axes):
        panel.set_xlabel("iteration")
        panel.set_visible(number < len(PANELS) + 2)
    with replacing(file) as part:
        figure.savefig(str(part))
    return True


def tell(folder):
    """Prints a run's table and draws its curves into the folder, or says how to install what is missing."""
    steps, looks = read_log(folder)
    print(summary(steps, looks))
    file = Path(folder) / "curves.png"
    drawn = draw(steps, looks, file)
    hint = f"pip install matplotlib 'numpy<2', then python -m cgd.training.curves {folder}"
    print(f"curves: {file if drawn else hint}")


def main():
    parser = errors.Parser(description="Print a run's log as a table and draw its curves.")
    parser.add_argument("folder", metavar="FOLDER", help="the folder of a run")
    tell(parser.parse_args().folder)


if __name__ == "__main__":
    errors.run(main)
