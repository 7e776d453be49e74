"""A run's table and curves, and what is told of a run that goes wrong."""

import json
import sys

import pytest
from PIL import Image

from cgd.system.errors import InputError
from cgd.training import curves, recipes
from cgd.training.diagnostics import Diagnostics


def line(iteration, **figures):
    usual = dict.fromkeys(curves.LOGGED.split(), 0.5)
    return dict(usual, iteration=iteration, **figures)


def folder_with(tmp_path, lines):
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return tmp_path


LOG = [line(10, lr=1.0, ranking_loss=1.0), line(20, lr=3.0, ranking_loss=3.0)]
LOG += [{"iteration": 20, "recall": {"1": 0.25, "2": 0.5}}, line(30, lr=5.0, ranking_loss=5.0)]
LOG += [{"iteration": 30, "recall": {"1": 0.75, "2": 1.0}}]


def test_the_table_has_the_means_between_evaluations(tmp_path):
    rows = [row.split() for row in curves.summary(*curves.read_log(folder_with(tmp_path, LOG))).splitlines()]
    assert [row[0] for row in rows] == ["iteration", "20", "30"]
    assert [row[1] for row in rows] == ["lr", "3", "5"]  # the last one: a mean of rates would be no rate
    assert [row[2] for row in rows] == ["ranking_loss", "2", "5"]
    assert [row[-1] for row in rows] == ["R@1", "0.2500", "0.7500"]


def test_a_run_without_steps_has_a_table_too(tmp_path):
    table = curves.summary(*curves.read_log(folder_with(tmp_path, [{"iteration": 0, "recall": {"10": 0.5}}])))
    assert table.splitlines()[1].split() == ["0"] + ["-"] * len(curves.COLUMNS) + ["0.5000"]


def test_the_curves_are_a_picture(tmp_path, capsys, figures):
    values = {name: number for number, name in enumerate(curves.LOGGED.split(), 1)}
    log = [line(n, **{name: n * value for name, value in values.items()}) for n in (10, 20)]
    curves.tell(folder_with(tmp_path, log + LOG[2:3] + LOG[4:]))
    (figure,) = figures
    drawn = {axes.get_title(): [one.get_xydata().tolist() for one in axes.lines] for axes in figure.axes}
    for title, names in (
        ("learning rate", ["lr"]),
        ("ranking loss", ["ranking_loss"]),
        ("classification loss", ["classification_loss"]),
        ("hardest distances", ["hardest_positive", "hardest_negative"]),
        ("share of active triplets", ["active_triplets"]),
        ("norm of the gradients", ["gradient_norm"]),
        ("share of time spent waiting for data", ["data_time"]),
    ):
        assert drawn[title] == [[[10, 10 * values[name]], [20, 20 * values[name]]] for name in names], title
    ratio = values["hardest_positive"] / values["hardest_negative"]
    assert drawn["hardest positive / hardest negative"] == [[[10, ratio], [20, ratio]]]
    assert drawn["recall"] == [[[20, 0.25], [30, 0.75]], [[20, 0.5], [30, 1.0]]]
    assert "curves.png" in capsys.readouterr().out
    assert len(Image.open(str(tmp_path / "curves.png")).convert("RGB").getcolors(10**6)) > 20


def test_without_matplotlib_the_table_stands_and_says_how_to_get_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    curves.tell(folder_with(tmp_path, LOG))
    output = capsys.readouterr().out
    assert "0.7500" in output and "pip install matplotlib" in output
    assert not (tmp_path / "curves.png").exists()


@pytest.mark.parametrize("text", ["[]\n", "{", '{"lr": 1}\n', '{"iteration": 1, "recall": 3}\n', "\xff"])
def test_other_files_are_one_line(tmp_path, text):
    (tmp_path / "log.jsonl").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match="log.jsonl: not the log of a run"):
        curves.read_log(tmp_path)
    with pytest.raises(InputError, match="not the log of a run"):
        curves.read_log(tmp_path / "nowhere")


def told(lines, **changes):
    texts = []
    diagnostics = Diagnostics(recipes.replace(recipes.RECIPES["cub200"], **changes), texts.append)
    for one in lines:
        diagnostics.look(one)
    return texts


COLLAPSED = [
    line(n, active_triplets=1.0, ranking_loss=0.102, hardest_positive=0.008, hardest_negative=0.006)
    for n in range(10, 310, 10)
]


def test_a_collapse_is_told_once():
    (text,) = told(COLLAPSED)
    assert "iteration 200: the triplet loss may have collapsed: at a margin of 0.1, the hardest positives are" in text
    assert "ratio is 1.33; at the start it was 1.33, at best 1.33" in text and "--lr" in text
    assert told(COLLAPSED[:19]) == []


def test_contracted_descriptors_that_still_get_better_have_not_collapsed():
    """As in a real run that ended with a good recall: the ratio fell from 1.15 to 1.03 while the space shrank."""
    ratios = [1.33 - 0.01 * n for n in range(len(COLLAPSED))]
    better = [dict(one, hardest_negative=0.008 / ratio) for one, ratio in zip(COLLAPSED, ratios)]
    assert told(better) == []
    far = [line(n, hardest_positive=0.45, hardest_negative=0.5) for n in range(10)]
    (text,) = told(better + far + COLLAPSED)  # worse than it had been
    assert "at the start it was 1.29, at best 0.90" in text
    vanished = [dict(one, hardest_positive=1e-6, hardest_negative=1e-6) for one in COLLAPSED]
    assert len(told([line(0, hardest_positive=0.3, hardest_negative=0.2)] * 10 + vanished)) == 1


def test_a_resumed_run_goes_on_from_its_log():
    texts = []
    diagnostics = Diagnostics(recipes.RECIPES["cub200"], texts.append)
    diagnostics.catch_up([json.dumps(one) for one in [*COLLAPSED, {"iteration": 300, "recall": {"1": 0.5}}]])
    diagnostics.look(COLLAPSED[-1])
    assert texts == []  # told before the run was stopped


@pytest.mark.parametrize(
    "figures, changes",
    [
        ({"hardest_positive": 0.9, "hardest_negative": 0.8}, {}),  # hard, but far apart: the beginning of any run
        ({"active_triplets": 0.4}, {}),  # learned: most triplets keep the margin
        ({}, {"soft_margin": True}),
        ({}, {"ranking_weight": 0.0}),
        ({}, {"margin": 0.01}),
    ],
)
def test_other_runs_have_not_collapsed(figures, changes):
    assert told([dict(one, **figures) for one in COLLAPSED], **changes) == []
    assert told(COLLAPSED[:2]) == []


def test_a_power_that_rests_at_its_bound_is_told():
    for bound in (1.0, 6.0):
        (text,) = told([line(n, gem_p=bound) for n in range(5)])
        assert "bound {}".format(bound) in text
    assert told([line(n, gem_p=3.0) for n in range(5)]) == []
    assert told([line(n, gem_p=p) for n, p in enumerate((6.0, 5.9, 6.0, 5.8))]) == []
