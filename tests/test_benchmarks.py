"""benchmarks/compare.py, with programs that fail."""

import sys

import pytest

from conftest import ROOT

# In place of contestants.py: "dies" is killed in its third turn, "absent" lacks a package, "talks" prints a text.
PROGRAMS = """
import os, signal, sys
title = sys.argv[1]
if title == "absent":
    sys.exit("no package of this name")
print("ready", flush=True)
for turn, line in enumerate(sys.stdin):
    if title == "dies" and turn == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    print("a text" if title == "talks" and turn == 5 else 1.0, flush=True)
"""


@pytest.fixture
def compare(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import compare

    (tmp_path / "contestants.py").write_text(PROGRAMS)
    monkeypatch.setattr(compare, "HERE", tmp_path)
    return compare


def test_programs_that_fail_are_left_out_and_the_others_go_on(compare, tmp_path, capsys):
    rates = compare.compare(["sound", "dies", "absent", "talks"], "net", 10, tmp_path, rounds=8)
    assert rates == {"sound": [10.0] * 8}
    told = capsys.readouterr().err.splitlines()
    assert [line for line in told if "left out" in line] == [
        "net: absent is left out: no package of this name",
        "net: talks is left out: answered 'a text' instead of the seconds",
        "net: dies is left out: ended with exit code -9",
    ]


@pytest.mark.parametrize(
    "titles, complete, rows", [(["sound"], True, 1), (["sound", "dies"], False, 1), (["dies", "sound"], False, 0)]
)
def test_a_table_needs_its_first_program(compare, tmp_path, capsys, titles, complete, rows):
    (tmp_path / "ResNet-50").mkdir()
    (tmp_path / "ResNet-50" / "counts.json").write_text("{}")
    assert compare.measure("training", titles, "ResNet-50", tmp_path, 8, None) is complete
    assert capsys.readouterr().out.count("| sound | 16.0 | 1.00 x |") == rows


def test_the_exit_code_says_that_a_program_failed(compare, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["compare.py", "--rounds", "1", "--folder", str(tmp_path)])
    monkeypatch.setattr(compare, "matrix_rate", lambda: 1e9)
    monkeypatch.setattr(compare, "version", lambda package: "1")
    measured = iter([True, False, True, True, True, True, True, True])
    monkeypatch.setattr(compare, "measure", lambda *arguments: next(measured))
    with pytest.raises(SystemExit, match="some programs failed"):
        compare.main()
    assert not list(measured)  # all tables were tried
