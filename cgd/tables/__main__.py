"""The paper's tables: which rows they have, the runs that are missing, and what came of them.

    python -m cgd.tables --list --dataset cub200
    python -m cgd.tables --table 1 --dataset cars196 --seeds 3 --gpus 0
    python -m cgd.tables --render --plot

    python -m cgd.tables --table 1,2 --name photos --dataset folders --gpus -1 -- --data-dir photos --iterations 300

What stands after -- goes to every train.py of the study. A run that is finished is not done again, a broken one goes
on, and several of these commands, on machines that share a file system too, share the work.
"""

import argparse
import shlex
import sys
from pathlib import Path

from cgd.data import datasets, flags
from cgd.network.options import check_branches
from cgd.system import errors
from cgd.system.errors import InputError
from cgd.tables import paper, plots, results, runs


def gpus(text):
    """ "0,1" -> [0, 1]."""
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError("expected numbers, as in 0,1, found {!r}".format(text))


def arguments(words):
    words, shared = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    parser = errors.Parser(
        prog="python -m cgd.tables", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    help_ = "show tables, rows, the data they need and the time they take here: estimated, or measured if finished"
    add("--list", action="store_true", help=help_)
    add("--table", metavar="NAME,...", help="the tables to run or show: {}, or all".format(", ".join(paper.TABLES)))
    add("--dataset", choices=list(datasets.SOURCES), help="default: cub200; main: each of the paper's four")
    add(
        "--seeds",
        type=flags.whole(1),
        default=1,
        metavar="N",
        help="runs of each row, with seeds 0 to N-1 (default: 1)",
    )
    help_ = (
        "one run at a time on each; -1 for the CPU, --gpus=-1,-1 for two runs on it; several runs share the cores, "
        "unless --num-workers stands after -- (default: 0)"
    )
    add("--gpus", type=gpus, default=[0], metavar="N,N,...", help=help_)
    add("--dry-run", action="store_true", help="print the commands that would be run")
    add("--render", action="store_true", help="write the tables of what is finished, as Markdown and JSON")
    add("--plot", action="store_true", help="draw configurations and lengths of the descriptor (matplotlib)")
    add("--results", type=Path, metavar="DIR", help="where to write those (default: the study's folder)")
    add(
        "--readme",
        type=Path,
        metavar="FILE",
        help="with --render: fill in the study's results there, between its marks",
    )
    add("--name", help="of the study, for runs with flags of your own (default: the data set's)")
    add(
        "--output-dir",
        type=Path,
        default=Path("runs/tables"),
        metavar="DIR",
        help="of all studies (default: %(default)s)",
    )
    add("--weights", type=Path, metavar="DIR", help="folder with BACKBONE.params, ImageNet weights for each backbone")
    options = parser.parse_args(words)
    options.shared = shared
    return options


def names_of(options):
    """The tables that were asked for, or all."""
    if options.table in (None, "all"):
        return list(paper.TABLES)
    names = options.table.split(",")
    for name in names:
        if name not in paper.TABLES:
            raise InputError("--table {}: expected some of {}, or all".format(name, ", ".join(paper.TABLES)))
    return names


def studies_of(options, names):
    """[(study, names of its tables)]. Where no data set is named, the main table is of the paper's four."""
    if options.name or options.dataset:
        folder = options.output_dir / (options.name or options.dataset)
        return [(runs.open_study(folder, options.dataset, options.shared), names)]
    studies = []
    for dataset in paper.PAPERS_SETS:
        own = [name for name in names if dataset == "cub200" or name == "main"]
        if own:
            studies.append((runs.open_study(options.output_dir / dataset, dataset, options.shared), own))
    return studies


def jobs_of(options):
    """The runs that were asked for, each once: all rows with seed 0, then all with seed 1."""
    jobs = {}
    for study, names in studies_of(options, names_of(options)):
        for seed in range(options.seeds):
            for name in names:
                rows = study.rows(paper.TABLES[name])
                if not rows and options.table != "all":
                    raise InputError("--table {}: compares crops, and {} has no boxes".format(name, study.dataset))
                for row in rows:
                    job = with_weights(study.job(row, seed), options.weights)
                    check(job.recipe, name, row)
                    jobs[job.folder] = job
        if not options.dry_run:
            runs.keep_setting(study)
    return list(jobs.values())


def check(recipe, name, row):
    """Raises InputError for a row that cannot be trained, now and not after a night of other runs."""
    try:
        check_branches(recipe.config, recipe.dim, recipe.fusion, recipe.architecture)
    except InputError as error:
        raise InputError("--table {}, row {}: {}; all runs have the flags after --".format(name, row.name, error))


def with_weights(job, folder):
    """The same job, told where the ImageNet weights of its backbone are."""
    if not folder:
        return job
    file = folder / (job.recipe.backbone + ".params")
    if not file.exists():
        raise InputError("--weights {}: expected {} there".format(folder, file.name))
    return job._replace(flags=job.flags + ("--backbone-params", str(file)))


def run(options):
    """Runs what is missing, or prints what that would be."""
    jobs = jobs_of(options)
    runner = runs.Runner(jobs, options.gpus)
    states = [job.state() for job in jobs]
    counts = ["{} {}".format(states.count(state), state) for state in ("finished", "begun", "missing")]
    print("{} runs: {}".format(len(jobs), ", ".join(counts)), file=sys.stderr)
    if options.dry_run:
        for job, state in zip(jobs, states):
            if state != "finished":
                words = runner.words(job, options.gpus[0])
                print("python {}".format(" ".join(map(shlex.quote, words))))
        return
    runner.run()


def show(options):
    """Prints tables, rows, the data each needs and the time each takes."""
    # MXNet takes seconds to come, and the other modes do without
    from cgd.system import environment
    from cgd.tables import rates

    device = environment.context(options.gpus[0])
    measured = {}

    def time_of(job, tested):
        recipe, took = job.recipe, job.seconds() if job.state() == "finished" else None
        if took is not None:
            return "took {}".format(duration(took))
        network = (recipe.backbone, recipe.last_stride, recipe.image_width, recipe.image_height, recipe.batch_size)
        if network not in measured:
            measured[network] = rates.measure(recipe, device)
        return duration(measured[network].seconds(recipe, tested))

    for study, names in studies_of(options, names_of(options)):
        data, tested = data_of(study)
        print("\n{}\n{}".format(study.folder, data))
        for name in names:
            table = paper.TABLES[name]
            print("\n--table {:<15} {}".format(name, table.title))
            for row in study.rows(table):
                print("    {:<26} {}".format(row.name, time_of(study.job(row, 0), tested)), flush=True)
    print("\nThe times are of one run on {}, from the fastest of several batches; reading pictures not".format(device))
    print('counted. "took": the run with seed 0 is finished, and that is the time it had, reading included.')


def data_of(study):
    """What a study needs, in words, and how many pictures its evaluations look at."""
    parser = errors.Parser(add_help=False)
    flags.add_data_flags(parser, study.dataset)
    given, _ = parser.parse_known_args(list(study.flags))
    source = datasets.SOURCES[study.dataset]
    try:
        files = (given.data_dir, given.train_txt, given.test_txt, given.bbox_txt, given.gallery_txt)
        counts, found = datasets.counts(datasets.load(study.dataset, *files)), "found"
    except InputError as error:
        counts, found = source.counts or {}, "missing: {}".format(error)
    halves = ", ".join("{} {:,} images of {:,}".format(half.lower(), n[1], n[0]) for half, n in counts.items())
    tested = sum(images for half, (_, images) in counts.items() if half.lower() != "train")
    return "data: {} ({}), {}".format(study.dataset, halves or "not known", found), tested


def duration(seconds):
    """ "3 min", "1.5 h"."""
    if seconds < 90:
        return "{:.0f} s".format(seconds)
    return "{:.0f} min".format(seconds / 60) if seconds < 5400 else "{:.1f} h".format(seconds / 3600)


def finished_studies(options):
    """The study that was asked for, or all."""
    if options.name or options.dataset:
        return [
            runs.open_study(options.output_dir / (options.name or options.dataset), options.dataset, options.shared)
        ]
    return [runs.open_study(file.parent) for file in sorted(options.output_dir.glob("*/setting.json"))]


def render(options):
    """Writes tables and plots of what is finished."""
    names = names_of(options) if options.table else None
    records = []
    for study in finished_studies(options):
        record = results.collect(study, names)
        if any(row["runs"] for table in record["tables"].values() for row in table["rows"]):
            records.append(record)
        else:
            print("{}: no finished runs".format(study.folder), file=sys.stderr)
    if not records:
        raise InputError("{}: nothing finished there yet; --table runs one".format(options.output_dir))
    for record in records:
        folder = options.results or options.output_dir / record["name"]
        if options.render:
            file = wrote(results.write(record["name"], results.markdown(record), record, folder))
            if options.readme:
                results.fill_in(options.readme, record["name"], results.digest(record, file))
        if options.plot:
            for file in plots.draw(record, folder):
                wrote(file)
    rows = results.main_rows(records)
    if options.render and len(rows) > 1:
        wrote(results.write("main-table", results.main_table(rows), rows, options.results or options.output_dir))


def wrote(file):
    print("wrote {}".format(file))
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
        raise InputError("expected --list, --table NAME, --render or --plot; --help says more")


if __name__ == "__main__":
    errors.run(main)
