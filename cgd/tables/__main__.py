"""Reproduces the paper's tables: lists their rows, runs what is missing, renders the results.

    python -m cgd.tables --list --dataset cub200
    python -m cgd.tables --table 1 --dataset cars196 --seeds 3 --gpus 0
    python -m cgd.tables --render --plot

    python -m cgd.tables --table 1,2 --name photos --dataset folders --gpus -1 -- --data-dir photos --iterations 300 \\
        --milestones 150,240

Flags after -- are passed to every train.py of the study. Finished runs are skipped, interrupted ones resumed. Several
of these commands share the work, also on several machines with a common file system.
"""

import argparse
import os
import shlex
import sys
from pathlib import Path

from cgd.data import datasets, flags
from cgd.data.samplers import IdentitySampler
from cgd.system import errors
from cgd.system.errors import InputError
from cgd.tables import paper, plots, results, runs
from cgd.training import recipes

NOTHING_TO_COMPARE = "no finished runs to compare: a table needs two finished rows, or to be named by --table"


def gpus(text):
    """ "0,1" -> [0, 1]."""
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers, as in 0,1, found {text!r}")


def arguments(words):
    words, shared = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    parser = errors.Parser(
        prog="python -m cgd.tables", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    help_ = "list tables, rows, data, and how long finished runs took; with --table, also the estimated times of others"
    add("--list", action="store_true", help=help_)
    add("--table", metavar="NAME,...", help="tables to run or list: {}, or all".format(", ".join(paper.TABLES)))
    help_ = "run or list only these rows of the tables, by the names that --list shows"
    add("--rows", type=lambda text: text.split(","), metavar="NAME,...", help=help_)
    add("--dataset", choices=list(datasets.SOURCES), help="default: cub200; for main: each of the paper's four")
    add(
        "--seeds",
        type=flags.whole(1),
        default=1,
        metavar="N",
        help="runs of each row, with seeds 0 to N-1 (default: 1)",
    )
    help_ = (
        "one run at a time on each; -1 for the CPU, --gpus=-1,-1 for two runs on it; parallel runs share the "
        "cores, unless --num-workers is given after -- (default: 0)"
    )
    add("--gpus", type=gpus, default=[0], metavar="N,N,...", help=help_)
    add("--dry-run", action="store_true", help="print the commands instead of running them")
    add("--render", action="store_true", help="write tables of the finished runs, as Markdown and JSON")
    add("--plot", action="store_true", help="plot configurations and descriptor dimensions (needs matplotlib)")
    add("--results", type=Path, metavar="DIR", help="output folder of --render and --plot (default: the study's)")
    add(
        "--readme",
        type=Path,
        metavar="FILE",
        help="with --render: insert the digest there, between the study's markers",
    )
    add("--name", help="name of the study, for runs with your own flags (default: the data set's)")
    add(
        "--output-dir",
        type=Path,
        default=Path("runs/tables"),
        metavar="DIR",
        help="folder of all studies (default: %(default)s)",
    )
    add("--weights", type=Path, metavar="DIR", help="folder with the ImageNet weights BACKBONE.params")
    options, unknown = parser.parse_known_args(words)
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}; flags of train.py go after --")
    options.shared = shared
    if options.name and Path(options.name).name != options.name:
        raise InputError(f"--name {options.name}: expected the name of a folder, without a slash; see --output-dir")
    return options


def names_of(options):
    """The requested tables, or all."""
    if options.table in (None, "all"):
        return list(paper.TABLES)
    names = options.table.split(",")
    for name in names:
        if name not in paper.TABLES:
            raise InputError("--table {}: expected some of {}, or all".format(name, ", ".join(paper.TABLES)))
    return names


def rows_of(options, study, name):
    """The rows of a table that --rows asks for."""
    return [row for row in study.rows(paper.TABLES[name]) if not options.rows or row.name in options.rows]


def check_rows(options, names):
    """Raises InputError for a --rows that none of the tables has."""
    known = [row.name for name in names for row in paper.TABLES[name].rows]
    for name in options.rows or ():
        if name not in known:
            raise InputError(f"--rows {name!r}: expected some of {', '.join(dict.fromkeys(known))}")


def studies_of(options, names):
    """[(study, names of its tables)]. Without a data set the main table covers the paper's four."""
    if options.name or options.dataset:
        folder = options.output_dir / (options.name or options.dataset)
        if not options.dataset and not (folder / runs.SETTING).exists():
            raise InputError(f"--name {options.name}: begins a new study; expected --dataset, too")
        return [(runs.open_study(folder, options.dataset, options.shared), names)]
    studies = []
    for dataset in paper.PAPERS_SETS:
        own = [name for name in names if dataset == "cub200" or name == "main"]
        if own:
            studies.append((runs.open_study(options.output_dir / dataset, dataset, options.shared), own))
    return studies


def jobs_of(options):
    """The requested runs, each once: all rows with seed 0, then all with seed 1."""
    jobs, requested = {}, names_of(options)
    check_rows(options, requested)
    studies = studies_of(options, requested)
    for study, names in studies:
        if options.weights and "--from-scratch" in study.flags:
            raise InputError(f"--weights: the study {study.folder} begins --from-scratch")
        for seed in range(options.seeds):
            for name in names:
                if not study.rows(paper.TABLES[name]) and options.table != "all":
                    chosen = study.options().cropped is not None
                    reason = "leave --cropped and --uncropped out" if chosen else f"{study.dataset} has no boxes"
                    raise InputError(f"--table {name}: compares crops with whole images; {reason}")
                for row in rows_of(options, study, name):
                    job = with_weights(study.job(row, seed), options.weights)
                    check(job.recipe, name, row)
                    jobs[job.folder] = job
    if not jobs:
        raise InputError(f"--rows {','.join(options.rows)}: this data set has none of these rows")
    for study, _ in [] if options.dry_run else studies:
        runs.keep_setting(study)
    for recipe in {study.recipe() for study, _ in studies}:
        recipes.warn_of_milestones(recipe)
    return list(jobs.values())


def check_data(jobs):
    """Raises InputError, before hours of work, for data that no run can use, or that are not those of earlier runs.

    jobs : of one or several studies; data that no run is left for need not be there
    """
    loaded = {}
    for job in jobs:
        files = data_files(job.options())
        if files not in loaded and job.state() != "finished":
            loaded[files] = datasets.load(*files)
    for job in jobs:
        options, recipe = job.options(), job.recipe
        if data_files(options) not in loaded:
            continue
        dataset = flags.selected(loaded[data_files(options)], options)
        check_trainable(dataset, recipe)
        if job.state() != "missing":
            known = runs.read_json(job.folder / "arguments.json").get("data_sha1")
            if known not in (None, datasets.digests(dataset)):
                raise InputError(
                    f"{job.folder}: had other images, classes or boxes than there are now; restore them, choose "
                    "another --name, or remove this folder"
                )


def check(recipe, name, row):
    """Raises InputError for a row that cannot be trained, before any run is started."""
    try:
        recipes.check(recipe)
    except InputError as error:
        raise InputError(f"--table {name}, row {row.name}: {error}; check the flags after --")


def with_weights(job, folder):
    """The job, with the ImageNet weights of its backbone from `folder`."""
    if not folder:
        return job
    file = folder / (job.recipe.backbone + ".params")
    if not file.exists():
        raise InputError(f"--weights {folder}: expected {file.name} there")
    given = [flag for flag in job.flags if flag != "--from-scratch"]  # the demo set's default
    return job._replace(flags=(*given, "--backbone-params", str(file)))


def run(options):
    """Runs what is missing, or prints the commands."""
    jobs = jobs_of(options)
    runner = runs.Runner(jobs, options.gpus)
    states = [job.state() for job in jobs]
    counts = [f"{states.count(state)} {state}" for state in ("finished", "begun", "missing")]
    print("{} run{}: {}".format(len(jobs), "s" * (len(jobs) != 1), ", ".join(counts)), file=sys.stderr)
    if options.dry_run:
        for job, state in zip(jobs, states):
            if state != "finished":
                words = runner.words(job, options.gpus[0])
                print("python {}".format(" ".join(map(shlex.quote, words))))
        return
    check_data(jobs)
    runner.run()


def show(options):
    """Prints tables, rows, their data, and the time of each run."""
    measured = {}
    if options.table:
        # Importing MXNet takes seconds, and nothing else here needs it.
        from cgd.system import environment
        from cgd.tables import rates

        device = environment.context(options.gpus[0])

    def time_of(job, tested, micro_batch):
        recipe, took = job.recipe, job.seconds() if job.state() == "finished" else None
        if took is not None:
            return f"took {duration(took)}"
        if not options.table:  # the networks of all tables take minutes to measure
            return ""
        size = (recipe.image_width, recipe.image_height, recipe.batch_size, micro_batch)
        network = (recipe.backbone, recipe.last_stride, recipe.freeze_batch_norm, *size)
        if network not in measured:
            measured[network] = rates.measure(recipe, device, micro_batch)
        return duration(measured[network].seconds(recipe, tested))

    requested = names_of(options)
    check_rows(options, requested)
    for study, names in studies_of(options, requested):
        data, tested, problem = data_of(study)
        micro_batch = study.options().micro_batch
        print(f"\n{study.folder}\n{data}" + (f"\nthe recipe cannot be trained on it: {problem}" if problem else ""))
        for name in names:
            table = paper.TABLES[name]
            print(f"\n--table {name:<15} {table.title}")
            for row in rows_of(options, study, name):
                print(f"    {row.name:<26} ", end="", flush=True)  # the first run of a network takes a while to measure
                print(time_of(study.job(row, 0), tested, micro_batch), flush=True)
    if not options.table:
        print("\n--table NAME estimates the times of its runs.")
        return
    print(f"\nThe times are of one run on {device}, estimated from the fastest of several batches,")
    print('without reading images. "took": measured, for a finished run with seed 0, with reading.')


def data_of(study):
    """A line on the data of a study, the number of images of an evaluation, and why its recipe cannot train on them.

    The latter is None if it can, or without data.
    """
    source, found, problem, recipe = datasets.SOURCES[study.dataset], "found", None, study.recipe()
    try:
        dataset = datasets.load(*data_files(study.options()))
        counts = datasets.counts(dataset)
    except InputError as error:
        dataset, counts, found = None, source.counts or {}, f"missing: {error}"
    try:
        if dataset:
            check_trainable(dataset, recipe)
    except InputError as error:
        problem = error
    splits = ", ".join(f"{split.lower()} {n[1]:,} images of {n[0]:,}" for split, n in counts.items())
    tested = sum(images for split, (_, images) in counts.items() if split.lower() != "train")
    return f"data: {study.dataset} ({splits or 'not known'}), {found}", tested, problem


def check_trainable(dataset, recipe):
    """Raises InputError unless a recipe's batches can be drawn from the training images."""
    datasets.check_trainable(dataset)
    identities = [record.identity for record in dataset.train]
    IdentitySampler(identities, recipe.batch_size, recipe.images_per_identity, seed=0, stop=0)


def data_files(options):
    """(data set, folder and lists) that train.py's options name, as `datasets.load` takes them."""
    return (options.dataset, *flags.files_of(options))


def duration(seconds):
    """ "3 min", "1.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def study_folders(options):
    """The folder of the requested study, or of all."""
    known = [file.parent for file in sorted(options.output_dir.glob(f"*/{runs.SETTING}"))]
    if not (options.name or options.dataset):
        return known
    folder = options.output_dir / (options.name or options.dataset)
    if not (folder / runs.SETTING).exists() and not runs.started(folder):
        there = f"there are {', '.join(each.name for each in known)}" if known else "--table runs one"
        raise InputError(f"{folder}: no such study; {there}")
    return [folder]


def render(options):
    """Writes tables and plots of the finished runs."""
    if options.rows:
        raise InputError("--rows: for runs and --list; --render and --plot show every finished row")
    names = names_of(options) if options.table else None
    if options.shared and not (options.name or options.dataset):
        raise InputError("flags after -- are those of one study; give its --name")
    records, skipped = [], None
    for folder in study_folders(options):
        try:
            study = runs.open_study(folder, options.dataset, options.shared)
            record = results.collect(study, names)
        except InputError as error:
            if options.name or options.dataset:
                raise
            print(f"skipped: {error}", file=sys.stderr)
            skipped = error
            continue
        if any(row["runs"] for table in record["tables"].values() for row in table["rows"]):
            records.append(record)
        else:
            print(f"{study.folder}: {NOTHING_TO_COMPARE}", file=sys.stderr)
    if not records:
        raise InputError(str(skipped) if skipped else f"{options.output_dir}: no finished runs to show")
    drawn = []
    if options.render and options.readme:
        for record in records:
            results.around(options.readme, record["name"])  # without its marks nothing is written
    for record in records:
        folder = options.results or options.output_dir / record["name"]
        if options.render:
            file = wrote(results.write(record["name"], results.markdown(record), record, folder))
            wrote(file.with_suffix(".json"))
            if options.readme:
                link = os.path.relpath(str(folder / f"{record['name']}.md"), str(options.readme.parent))
                results.fill_in(options.readme, record["name"], results.digest(record, link))
                wrote(options.readme)
        if options.plot:
            drawn += [wrote(file) for file in plots.draw(record, folder)]
    if options.plot and not drawn:
        print("nothing to plot: run --table configurations or dimensions", file=sys.stderr)
    rows = results.main_rows(records)
    if options.render and len(rows) > 1:
        wrote(results.write("main-table", results.main_table(rows), rows, options.results or options.output_dir))


def wrote(file):
    print(f"wrote {file}")
    return file


def main():
    options = arguments(sys.argv[1:])
    if options.render or options.plot:
        render(options)
    elif options.list:
        show(options)
    elif options.table:
        run(options)
    else:
        raise InputError("expected --list, --table NAME, --render or --plot; see --help")


if __name__ == "__main__":
    errors.run(main)
