"""What the runs of a study came to: the tables as Markdown and JSON, and what README shows of them."""

import itertools
import json
import math
import statistics

from cgd import datasets, paper, recipes
from cgd.errors import InputError
from cgd.files import replacing

LEVEL = 0.05  # of significance
MOST_DEALS = 200000  # beyond, the permutation test looks at a sample
SCORES = (
    "Mean and standard deviation over the seeds, after the last iteration; the last column is of the best of the looks "
    "at the test half, which flatters. A dash: not known of the paper, or not run here."
)
MADE = "Made by `python -m cgd.tables --render`."


def seeds_of(study, row):
    """The seeds that have a folder for a row."""
    names = (folder.name[len("seed-") :] for folder in study.job(row, 0).folder.parent.glob("seed-*"))
    return sorted(int(name) for name in names if name.isdigit())


def collect(study, names=None):
    """The finished runs of a study, as JSON would have it.

    names : of the tables; None for all that have something to compare, or that have a single row
    """
    tables = {}
    for name in names or paper.TABLES:
        table = paper.TABLES[name]
        rows = [_row(study, row) for row in study.rows(table)]
        run = sum(bool(row["runs"]) for row in rows)
        if names or run >= min(2, len(rows)) > 0:
            tables[name] = {"title": table.title, "note": table.note, "rows": rows, "order": verdicts(table, rows)}
    return {
        "name": study.folder.name,
        "dataset": study.dataset,
        "recipe": recipes.text_of_changes(recipes.RECIPES[study.dataset], study.recipe()),
        "ranks": _ranks(study, tables),
        "tables": tables,
    }


def _row(study, row):
    job = study.job(row, 0)
    runs = [study.job(row, seed).scores() for seed in seeds_of(study, row)]
    runs = [run for run in runs if run]
    known = row.paper if row.dataset == study.dataset else ()
    return {
        "name": row.name,
        "recipe": recipes.text_of_changes(study.recipe(), job.recipe),
        "flags": list(row.flags),
        "paper": dict(zip(map(str, datasets.SOURCES[study.dataset].ranks), known)) or None,
        "runs": runs,
        **{score: _summary([run[score] for run in runs]) for score in ("last", "best")},
    }


def _summary(recalls):
    """{K: [mean, deviation]} over seeds; the deviation is None for a single one."""
    ranks = recalls[0] if recalls else ()
    return {k: mean_and_deviation([each[k] for each in recalls if k in each]) for k in ranks}


def mean_and_deviation(values):
    """The mean, and the sample's standard deviation (n - 1), which one value does not have."""
    return [statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None]


def _ranks(study, tables):
    for row in (row for table in tables.values() for row in table["rows"]):
        if row["runs"]:
            return list(row["last"])
    return [str(k) for k in datasets.SOURCES[study.dataset].ranks]


def first_rank(row):
    """The scores that are compared: the first recall after the last iteration, of each seed."""
    return [next(iter(run["last"].values())) for run in row["runs"]]


def verdicts(table, rows):
    """For each step of the paper's order: whether these runs agree.

    Compared is the first recall after the last iteration. Where an entry of the order names several rows, the best of
    them stands for it, chosen by that very score.
    """
    by_name = {row["name"]: row for row in rows}
    best = []
    for names in table.order:
        found = [by_name[name] for name in names if by_name[name]["runs"]]
        complete = len(found) == len(names)
        best.append(max(found, key=lambda row: statistics.mean(first_rank(row))) if complete else None)
    return [verdict(better, worse) for better, worse in zip(best, best[1:]) if better and worse]


def verdict(better, worse):
    """Whether one row is better than another, as JSON."""
    scores = first_rank(better), first_rank(worse)
    difference = statistics.mean(scores[0]) - statistics.mean(scores[1])
    return {
        "better": better["name"],
        "worse": worse["name"],
        "difference": difference,
        "holds": difference > 0,
        "p": permutation_test(*scores),
    }


def permutation_test(high, low):
    """One-sided p of the difference of two means, from the scores alone: how often chance does as well.

    That is the share of all ways to deal the scores out to two groups of these sizes in which the first group's mean is
    as far above the second's (for many scores, of a sample of them). None where even the clearest difference could not
    reach a p of 0.05, as with two seeds each: three are needed.
    """
    scores, size = list(high) + list(low), len(high)
    deals = math.factorial(len(scores)) // math.factorial(size) // math.factorial(len(low))
    if deals * LEVEL < 1:
        return None
    if deals <= MOST_DEALS:
        sums = [sum(group) for group in itertools.combinations(scores, size)]
        return sum(total >= sum(high) - 1e-9 for total in sums) / len(sums)
    from numpy.random import RandomState

    generator = RandomState(0)
    sums = [sum(generator.permutation(scores)[:size]) for _ in range(MOST_DEALS // 10)]
    return (1 + sum(total >= sum(high) - 1e-9 for total in sums)) / (1 + len(sums))


def markdown(record):
    """The tables of a study."""
    lines = ["# Results: {}".format(record["name"]), "", *_heading(record), ""]
    for table in record["tables"].values():
        lines += ["## {}".format(table["title"]), ""]
        lines += _grid(table["rows"], record["ranks"])
        for paragraph in [table["note"], *map(_sentence, table["order"])]:
            lines += ["", paragraph] if paragraph else []
        lines.append("")
    return "\n".join(lines)


def _heading(record):
    """Which data, which recipe, which program."""
    runs = [run for table in record["tables"].values() for row in table["rows"] for run in row["runs"]]
    halves = next((run["data"] for run in runs if run["data"]), None) or {}
    counts = ["{} {:,} images of {:,} identities".format(half.lower(), n[1], n[0]) for half, n in halves.items()]
    commits = sorted({short(run["git_commit"]) for run in runs if run["git_commit"]})
    versions = sorted({"MXNet {mxnet}, Python {python}".format(**run["versions"]) for run in runs if run["versions"]})
    weights = sorted({run["weights"] for run in runs})
    changes = " ".join("{} {}".format(recipes.flag(name), text) for name, text in record["recipe"].items())
    return [
        "- Data: `--dataset {}`{}.".format(record["dataset"], "; " + ", ".join(counts) if counts else ""),
        "- Recipe: the data set's{}.".format(", with `{}`".format(changes) if changes else ""),
        "- Weights at the start: {}.".format(", ".join(weights)),
        "- Program: {}.".format("; ".join(versions + (["commit " + ", ".join(commits)] if commits else []))),
        "",
        SCORES,
        MADE,
    ]


def short(commit):
    """A commit as people write it; that files differed from it stays visible."""
    return commit[:9] + ("-dirty" if commit.endswith("-dirty") else "")


def _grid(rows, ranks):
    has_paper = any(row["paper"] for row in rows)
    titles = ["", "seeds", *("R@" + k for k in ranks), "best R@" + ranks[0]]
    papers = ["paper R@" + k for k in ranks] if has_paper else ["paper R@" + ranks[0]]
    lines = [titles[:1] + papers + titles[1:]]
    lines.append(["---"] * len(lines[0]))
    for row in rows:
        known = [_figure((row["paper"] or {}).get(k)) for k in ranks[: len(papers)]]
        own = [_spread(row["last"].get(k)) for k in ranks] + [_spread(row["best"].get(ranks[0]))]
        lines.append([row["name"], *known, str(len(row["runs"])), *own])
    return _markdown(lines)


def _markdown(lines):
    return ["| {} |".format(" | ".join(line)) for line in lines]


def _figure(value):
    return "-" if value is None else "{:.4f}".format(value)


def _spread(pair):
    if not pair:
        return "-"
    mean, deviation = pair
    return _figure(mean) if deviation is None else "{:.4f} ± {:.4f}".format(mean, deviation)


def _sentence(step):
    """One step of the paper's order, in words."""
    text = "The paper: {better} > {worse}. Here {agreement}, by {points:+.1f} points".format(
        agreement="too" if step["holds"] else "not", points=100 * step["difference"], **step
    )
    return "{} ({}).".format(text, _certainty(step))


def _certainty(step):
    if step["p"] is None:
        return "too few seeds for a test"
    return "p = {:.2g}{}".format(step["p"], "" if step["p"] <= LEVEL else ", not significant")


def digest(record, link):
    """What README shows: one line a table."""
    lines = [
        [
            "",
            "R@{} after the last iteration, best first".format(record["ranks"][0]),
            "the paper's order (p from three seeds on)",
        ],
        ["---"] * 3,
    ]
    for table in record["tables"].values():
        run = [row for row in table["rows"] if row["runs"]]
        run.sort(key=lambda row: -statistics.mean(first_rank(row)))
        figures = " · ".join("{} {}".format(row["name"], _spread(row["last"][record["ranks"][0]])) for row in run)
        steps = " · ".join(
            "{} > {}: {}{}".format(
                step["better"],
                step["worse"],
                "holds" if step["holds"] else "does not hold",
                "" if step["p"] is None else " ({})".format(_certainty(step)),
            )
            for step in table["order"]
        )
        lines.append([table["title"], figures, steps or "-"])
    return "\n".join([*_markdown(lines), "", "All of it: [{0}]({0}).".format(link)])


def main_rows(records):
    """The main table's rows of several studies, as JSON: each of the paper's data sets has a row of its own."""
    return [
        dict(row, study=record["name"], ranks=record["ranks"])
        for record in records
        if record["dataset"] in paper.PAPERS_SETS and "main" in record["tables"]
        for row in record["tables"]["main"]["rows"]
        if row["runs"]
    ]


def main_table(rows):
    """The main table over data sets, each at its own ranks."""
    lines = [["study", "row", "seeds", "K", "R@K here", "R@K in the paper", "best R@1 here"]]
    lines.append(["---"] * len(lines[0]))
    for row in rows:
        here = ", ".join(_spread(row["last"].get(k)) for k in row["ranks"])
        known = ", ".join(_figure(value) for value in (row["paper"] or {}).values()) or "-"
        best = _spread(row["best"].get(row["ranks"][0]))
        lines.append([row["study"], row["name"], str(len(row["runs"])), ", ".join(row["ranks"]), here, known, best])
    table = paper.TABLES["main"]
    return "\n".join(["# {}".format(table.title), "", *_markdown(lines), "", table.note, "", SCORES, MADE, ""])


def write(name, text, record, folder):
    """Writes NAME.md and NAME.json into a folder, and returns the former's path."""
    file = folder / (name + ".md")
    with replacing(file) as part:
        part.write_text(text)
    with replacing(file.with_suffix(".json")) as part:
        part.write_text(json.dumps(record, indent=1) + "\n")
    return file


def fill_in(readme, name, text):
    """Puts a text between the README's two marks for a study. Raises InputError where it has none."""
    begin, end = "<!-- results: {} -->\n".format(name), "<!-- end of results: {} -->".format(name)
    try:
        before, _, rest = readme.read_text().partition(begin)
    except OSError as error:
        raise InputError("{}: {}".format(readme, error.strerror))
    _, mark, after = rest.partition(end)
    if not mark:
        raise InputError("{}: expected the lines {} and {}".format(readme, begin.strip(), end))
    with replacing(readme) as part:
        part.write_text(before + begin + text + "\n" + end + after)
