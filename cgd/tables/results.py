"""Results of a study: tables as Markdown and JSON, and a digest for docs/results.md."""

import itertools
import json
import shlex
import statistics

from cgd.data import datasets, flags
from cgd.network.options import OPTIONS
from cgd.system.errors import InputError
from cgd.system.files import replacing
from cgd.tables import paper
from cgd.training import recipes

SCORES = (
    "Mean and standard deviation over the seeds, after the last iteration. A dash: not known of the released "
    "model, or not run here."
)
UNCHANGED = "A row without changes is the recipe itself: in all tables the same runs."
BEST = 'The "best" column is the best of several evaluations on the test split, and optimistic.'
HARDEST = (
    "Hardest positive and negative: their mean distances in the last tenth of the training. Far below the margin and "
    "with a ratio that does not fall, the ranking loss has collapsed."
)
PAIRED = (
    "The paper's order is by its readers' notes, without figures; on which data set it holds is not known. Differences "
    "are of the recall at the smallest K, paired by seed: mean and standard deviation over the seeds that both rows "
    "have, and the number of seeds in which the first row was better."
)
SELECTED = "Best of several rows: selected by this same score, so that a difference in its favour is optimistic."
# The released model's figures are of this network and these images. The configuration is the row's own.
NETWORK = (*(name for name in OPTIONS if name != "config"), "image_width", "image_height", "mean", "std")
MADE = "Made by `python -m cgd.tables --render`."


def seeds_of(study, row):
    """The seeds that have a folder for a row."""
    names = (folder.name[len("seed-") :] for folder in study.job(row, 0).folder.parent.glob("seed-*"))
    return sorted(int(name) for name in names if name.isdigit())


def collect(study, names=None):
    """The finished runs of a study, as JSON.

    names : of tables; None for all tables with at least two finished rows, or with a single row

    Raises InputError for runs that may not be compared, as `check_origins` does.
    """
    tables, origins, recipe = {}, {}, study.recipe()
    for name in names or [name for name in paper.TABLES if name != "main" or study.dataset in paper.PAPERS_SETS]:
        table = paper.TABLES[name]
        rows = [_row(study, row) for row in study.rows(table)]
        for row, found in zip(study.rows(table), rows):
            check_origins(study, name, row, found["runs"], origins)
        run = sum(bool(row["runs"]) for row in rows)
        if names or run >= min(2, len(rows)) > 0:
            tables[name] = {"title": table.title, "note": table.note, "rows": rows, "order": steps_of(table, rows)}
    return {
        "name": study.folder.name,
        "dataset": study.dataset,
        "flags": list(study.flags),
        "configuration": f"{recipe.config}, {recipe.dim} dimensions",
        "recipe": recipes.text_of_changes(recipes.RECIPES[study.dataset], recipe),
        "several_evaluations": recipe.eval_every < recipe.iterations,
        "ranks": _ranks(study, tables),
        "tables": tables,
    }


def check_origins(study, table, row, row_runs, known):
    """Raises InputError if runs started from other images or other initial weights than those before them.

    Both can change between two commands, without a change of the recipe. Rows may have backbones of their own, but
    in a table either all weights are random or none.

    table : its name · known : {what: (value, folder)} of the runs before, to be added to
    """
    for run in row_runs:
        job = study.job(row, run["seed"])
        origin = "random" if run["weights"] == "random" else "pretrained"
        weights = origin if origin == "random" else run["weights_sha1"]
        for what, of, own in (
            ("images, classes or boxes", tuple(row.flags), run["data_sha1"]),  # --uncropped has no boxes
            ("initial weights", job.recipe.backbone, weights),
            ("initial weights, random or not,", table, origin),
            ("precision", "", run["precision"]),
        ):
            value, folder = known.setdefault((what, of), (own, job.folder)) if own else (None, None)
            if value != own:
                raise InputError(
                    f"{job.folder}: trained with other {what} than {folder}, so they cannot be compared; remove one of "
                    "them and run it again"
                )


def _row(study, row):
    job = study.job(row, 0)
    runs = [study.job(row, seed).scores() for seed in seeds_of(study, row)]
    runs = [run for run in runs if run]
    known = row.released if row.dataset == study.dataset and has_released_network(study) else ()
    return {
        "name": row.name,
        "recipe": recipes.text_of_changes(study.recipe(), job.recipe),
        "flags": list(row.flags),
        "released": dict(zip(map(str, datasets.SOURCES[study.dataset].ranks), known)) or None,
        "runs": runs,
        **{score: _summary([run[score] for run in runs]) for score in ("last", "best", "hardest")},
    }


def has_released_network(study):
    """Whether a study has the network, images and cropping of the data set's recipe, as the released model does."""
    own, theirs, options = study.recipe(), recipes.RECIPES[study.dataset], study.options()
    usual = options.cropped is None and not any(flags.files_of(options)[1:])  # the folder may be anywhere
    return usual and all(getattr(own, name) == getattr(theirs, name) for name in NETWORK)


def _summary(recalls):
    """{K: [mean, deviation]} over seeds; the deviation is None for a single one."""
    ranks = recalls[0] if recalls else ()
    return {k: mean_and_deviation([each[k] for each in recalls if k in each]) for k in ranks}


def mean_and_deviation(values):
    """The mean, and the sample standard deviation (n - 1), None for a single value."""
    return [statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None]


def _ranks(study, tables):
    for row in (row for table in tables.values() for row in table["rows"]):
        if row["runs"]:
            return sorted(row["last"], key=int)
    return [str(k) for k in datasets.SOURCES[study.dataset].ranks]


def first_rank(row):
    """The compared score, the recall at the smallest K after the last iteration, of each seed."""
    return list(_by_seed(row).values())


def _by_seed(row):
    return {run["seed"]: run["last"][min(run["last"], key=int)] for run in row["runs"]}


def steps_of(table, rows):
    """How these runs agree with each step of the paper's order.

    An entry of the order that names several rows is represented by the best of those that were run. It is selected by
    the compared score itself, which makes a difference in its favour optimistic.

    All pairs of entries, not neighbours only: those of the first with the last are the table's main claim.
    """
    by_name = {row["name"]: row for row in rows}
    groups = [[by_name[name] for name in names] for names in table.order]
    return [
        _step(better, worse)
        for better, worse in itertools.combinations(groups, 2)
        if all(any(row["runs"] for row in group) for group in (better, worse))
    ]


def _step(better, worse):
    """One step, as JSON: the best row of each group, the number of rows run and of all, and the paired difference."""
    run = [[row for row in group if row["runs"]] for group in (better, worse)]
    first, second = (_best(rows, _common_seeds(run[0] + run[1])) for rows in run)
    return {
        "better": first["name"],
        "better_of": [len(run[0]), len(better)],
        "worse": second["name"],
        "worse_of": [len(run[1]), len(worse)],
        **paired_difference(_by_seed(first), _by_seed(second)),
    }


def _common_seeds(rows):
    """The seeds that all rows have."""
    return set.intersection(*(set(_by_seed(row)) for row in rows))


def _best(rows, seeds):
    """The row with the highest mean score over some seeds, or over its own if there are none."""
    return max(rows, key=lambda row: _mean_over(row, seeds))


def _mean_over(row, seeds):
    """The mean score of a row over some seeds, or over its own if there are none."""
    return statistics.mean([_by_seed(row)[seed] for seed in seeds] or first_rank(row))


def paired_difference(first, second):
    """The difference of two rows' scores over the seeds that both have, as JSON.

    first, second : {seed: score}
    Returns the seeds, the mean difference and its standard deviation (None if there are too few seeds), and the number
    of seeds in which the first row was better, and in which both were equal.
    """
    seeds = sorted(set(first) & set(second))
    differences = [first[seed] - second[seed] for seed in seeds]
    mean, deviation = mean_and_deviation(differences) if differences else (None, None)
    wins = sum(difference > 0 for difference in differences)
    ties = differences.count(0)
    return {"seeds": seeds, "difference": mean, "deviation": deviation, "first_better": wins, "ties": ties}


def markdown(record):
    """The tables of a study."""
    lines = ["# Results: {}".format(record["name"]), "", *_heading(record), ""]
    for table in record["tables"].values():
        lines += ["## {}".format(table["title"]), ""]
        lines += _grid(table["rows"], record["ranks"], record["several_evaluations"])
        lines += _warnings(table["rows"])
        lines += ["", table["note"]] if table["note"] else []
        lines += ["", *_order(table["order"])] if table["order"] else []
        lines.append("")
    return "\n".join(lines)


def command(record):
    """The command that makes a study's runs, without the devices."""
    seeds = [run["seed"] for run in _runs(record)]
    words = ["--table", ",".join(record["tables"])]
    rows = [row for table in record["tables"].values() for row in table["rows"]]
    if not all(row["runs"] for row in rows):
        words += ["--rows", ",".join(dict.fromkeys(row["name"] for row in rows if row["runs"]))]
    words += ["--name", record["name"], "--dataset", record["dataset"]]
    words += ["--seeds", str(max(seeds, default=0) + 1)]
    given = any(word.split("=")[0] == "--backbone-params" for word in record["flags"])
    if not given and any(run["weights"].endswith(".params") for run in _runs(record)):
        words += ["--weights", "DIR"]  # the folder of the files that the heading names
    words += ["--", *record["flags"]] if record["flags"] else []
    return "python -m cgd.tables " + " ".join(map(shlex.quote, words))


def _fewer(record):
    """What to add to the command if not all rows have the same number of seeds."""
    rows = [row for table in record["tables"].values() for row in table["rows"] if row["runs"]]
    return "; rows with fewer seeds by a command of their own" if len({len(row["runs"]) for row in rows}) > 1 else ""


def _runs(record):
    return [run for table in record["tables"].values() for row in table["rows"] for run in row["runs"]]


def _heading(record):
    """Data, recipe and versions."""
    runs = _runs(record)
    splits = next((run["data"] for run in runs if run["data"]), None) or {}
    counts = [f"{split.lower()} {n[1]:,} images of {n[0]:,} identities" for split, n in splits.items()]
    commits = sorted({short(run["git_commit"]) for run in runs if run["git_commit"]})
    versions = sorted({"MXNet {mxnet}, Python {python}".format(**run["versions"]) for run in runs if run["versions"]})
    weights = sorted({_weights(run) for run in runs})
    changes = " ".join(f"{recipes.flag(name)} {text}" for name, text in record["recipe"].items())
    return [
        "- Data: `--dataset {}`{}.".format(record["dataset"], "; " + ", ".join(counts) if counts else ""),
        "- Recipe: `{}`'s ({}){}.".format(
            record["dataset"], record["configuration"], f", with `{changes}`" if changes else ""
        ),
        f"- Command: `{command(record)}`, with `--gpus` for the devices{_fewer(record)}.",
        "- Initial weights: {}.".format(", ".join(weights)),
        "- Versions: {}.".format("; ".join(versions + (["commit " + ", ".join(commits)] if commits else []))),
        "",
        " ".join([SCORES, UNCHANGED, HARDEST] + ([BEST] if record["several_evaluations"] else [])),
        "",
        *([PAIRED, ""] if any(table["order"] for table in record["tables"].values()) else []),
        MADE,
    ]


def _weights(run):
    """ "mobilenetv2_1.0.params (SHA-1 7d0a7fd2)", or "random"."""
    return run["weights"] + (" (SHA-1 {:.8})".format(run["weights_sha1"]) if run["weights_sha1"] else "")


def short(commit):
    """The first digits of a commit, with its "-dirty"."""
    return commit[:9] + ("-dirty" if commit.endswith("-dirty") else "")


def _grid(rows, ranks, several_evaluations):
    released = ranks if any(row["released"] for row in rows) else []
    best = ranks[:1] if several_evaluations else []
    lines = [["", "changes", *("released model, R@" + k for k in released), "seeds", *("R@" + k for k in ranks)]]
    lines[0] += ["best R@" + k for k in best] + ["hardest positive / negative"]
    lines.append(["---"] * len(lines[0]))
    for row in rows:
        known = [_figure((row["released"] or {}).get(k)) for k in released]
        own = [_spread(row["last"].get(k)) for k in ranks] + [_spread(row["best"].get(k)) for k in best]
        hardest = [row["hardest"].get(sign) for sign in ("positive", "negative")]
        distances = " / ".join(f"{mean:.3g}" for mean, _ in hardest) if all(hardest) else "-"
        lines.append([row["name"], _changes(row), *known, _seeds(row) or "-", *own, distances])
    return _markdown(lines)


def _warnings(rows):
    """A list of what train.py warned of in the runs of the rows; no lines if it did not."""
    found = [(row["name"], run["seed"], text) for row in rows for run in row["runs"] for text in run["warnings"]]
    lines = [f"- {name}, seed {seed}: {text}" for name, seed, text in found]
    return ["", "Warnings of train.py:", "", *lines] if lines else []


def _changes(row):
    """ "`--fusion sum`": what a row changes in the study's recipe, or "-"."""
    words = [f"{recipes.flag(name)} {text}" for name, text in row["recipe"].items()] + row["flags"]
    return "`{}`".format(" ".join(words)) if words else "-"


def _seeds(row):
    return ", ".join(str(run["seed"]) for run in row["runs"])


def _seeds_in_words(row):
    return f"seed{'s' if len(row['runs']) > 1 else ''} {_seeds(row)}"


def _markdown(lines):
    return ["| {} |".format(" | ".join(line)) for line in lines]


def _figure(value):
    return "-" if value is None else f"{value:.4f}"


def _spread(pair, mean_as="{:.4f}"):
    if not pair:
        return "-"
    mean, deviation = pair
    return mean_as.format(mean) + ("" if deviation is None else f" ± {deviation:.4f}")


def _order(steps):
    """The paper's order, and the differences here."""
    lines = [["the paper's order", "difference here"], ["---"] * 2]
    lines += [["{} > {}".format(_entry(step, "better"), _entry(step, "worse")), _difference(step)] for step in steps]
    chosen = any(step[side + "_of"][0] > 1 for step in steps for side in ("better", "worse"))
    return _markdown(lines) + (["", SELECTED] if chosen else [])


def _difference(step):
    if not step["seeds"]:
        return "no seed in common"
    count = len(step["seeds"])
    spread = _spread((step["difference"], step["deviation"]), "{:+.4f}")
    ties = f", equal in {step['ties']}" if step["ties"] else ""
    return "{}, better in {} of {} seed{}{}".format(spread, step["first_better"], count, "s" if count > 1 else "", ties)


def _entry(step, side):
    """The name of a row of a step, and how many it was selected from."""
    run, all_rows = step[side + "_of"]
    if run > 1:
        return f"{step[side]} (best of {_group(run, all_rows)})"
    return step[side] + (f" (only one of {all_rows} that was run)" if all_rows > 1 else "")


def _group(run, all_rows):
    """ "6", or "2 run of 6": a group's rows."""
    return str(run) if run == all_rows else f"{run} run of {all_rows}"


def digest(record, link):
    """One line for each table, for docs/results.md."""
    rank = record["ranks"][0]
    lines = [["", f"R@{rank} after the last iteration, highest first", "the paper's order: difference, paired by seed"]]
    lines.append(["---"] * 3)
    for table in record["tables"].values():
        run = [row for row in table["rows"] if row["runs"]]
        common = _common_seeds(run) if run else ()
        run.sort(key=lambda row: -_mean_over(row, common))
        differ = len({_seeds(row) for row in run}) > 1  # means over other seeds do not compare
        figures = " · ".join(
            f"{row['name']} {_spread(row['last'][rank])}" + (f" ({_seeds_in_words(row)})" if differ else "")
            for row in run
        )
        steps = "<br>".join(
            "{} > {}: {}".format(_entry(step, "better"), _entry(step, "worse"), _difference(step))
            for step in table["order"]
        )
        lines.append([table["title"], figures, steps or "-"])
    return "\n".join([*_markdown(lines), "", f"All rows: [{link}]({link})."])


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
    """The main table over several data sets, each with its own K."""
    lines = [["study", "row", "seeds", "K", "R@K here", "R@K of the released model", "best here, at the first K"]]
    lines.append(["---"] * len(lines[0]))
    for row in rows:
        here = ", ".join(_spread(row["last"].get(k)) for k in row["ranks"])
        known = ", ".join(_figure((row["released"] or {}).get(k)) for k in row["ranks"]) if row["released"] else "-"
        best = _spread(row["best"].get(row["ranks"][0]))
        lines.append([row["study"], row["name"], str(len(row["runs"])), ", ".join(row["ranks"]), here, known, best])
    table = paper.TABLES["main"]
    return "\n".join([f"# {table.title}", "", *_markdown(lines), "", table.note, "", f"{SCORES} {BEST}", MADE, ""])


def write(name, text, record, folder):
    """Writes NAME.md and NAME.json into a folder. Returns the path of NAME.md."""
    file = folder / (name + ".md")
    with replacing(file) as part:
        part.write_text(text)
    with replacing(file.with_suffix(".json")) as part:
        part.write_text(json.dumps(record, indent=1) + "\n")
    return file


def fill_in(readme, name, text):
    """Inserts a text between a study's two markers in a file. Raises InputError if it has none."""
    before, after = around(readme, name)
    with replacing(readme) as part:
        part.write_text(before + text + "\n" + after)


def around(readme, name):
    """What a file holds up to a study's first marker, and from its second one on. Raises InputError without them."""
    begin, end = f"<!-- results: {name} -->\n", f"<!-- end of results: {name} -->"
    try:
        before, _, rest = readme.read_text().partition(begin)
    except OSError as error:
        raise InputError(f"{readme}: {error.strerror}")
    _, mark, after = rest.partition(end)
    if not mark:
        raise InputError(f"{readme}: expected the lines {begin.strip()} and {end}")
    return before + begin, mark + after
