"""train.py, test.py and the picture of neighbours, run as a user runs them."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from cgd import checkpoints, datasets, figures
from cgd.retrieval import recall_at_k
from conftest import command

SMALL = "--image-width 32 --image-height 32 --dim 16 --batch-size 8 --images-per-identity 2 --gpu -1".split()


@pytest.fixture(scope="module")
def run(small_demo, tmp_path_factory):
    """A short run of train.py; (its folder, what it printed)."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    result = command(
        *["train.py", "--dataset", "demo", "--data-dir", small_demo, "--from-scratch", "--iterations", 3],
        *["--output-dir", folder, "--seed", 1, "--num-workers", 1, *SMALL],
    )
    assert result.returncode == 0, result.stderr
    return folder, result


def evaluate(run, small_demo, *more):
    result = command("test.py", "--pretrained-model", run[0] / "last", "--data-dir", small_demo, "--gpu", -1, *more)
    assert result.returncode == 0, result.stderr
    return result


def printed(result):
    return [float(recall) for recall in re.findall(r"^R@ +\d+: (\d\.\d{4})$", result.stdout, re.MULTILINE)]


def test_train_reports_last_and_best(run):
    folder, result = run
    assert re.search(r"^last: R@1 \d\.\d{4} .*\(iteration 3, ", result.stdout, re.MULTILINE)
    assert re.search(r"^best: R@1 \d\.\d{4} ", result.stdout, re.MULTILINE)
    record = json.loads((folder / "arguments.json").read_text())
    assert record["recipe"]["iterations"] == 3 and record["recipe"]["lr"] == 3e-3 and "--seed" in record["command"]


def test_test_prints_what_train_measured(run, small_demo):
    result = evaluate(run, small_demo)
    kept = json.loads((run[0] / "last.json").read_text())["recall"]
    assert printed(result) == [round(recall, 4) for recall in kept.values()]
    assert "| Test    |        4 |      24 |" in result.stdout
    assert re.search(r"images/s, search \d", result.stdout)


def test_embeddings_and_results_are_kept(run, small_demo, tmp_path):
    result = evaluate(
        *[run, small_demo, "--save-embeddings", tmp_path / "e.npz", "--results", tmp_path / "r.json"],
        *["--recallk", "1,3", "--batch-size", 5, "--num-workers", 0],
    )
    kept, figures = np.load(str(tmp_path / "e.npz")), json.loads((tmp_path / "r.json").read_text())
    records = datasets.demo(small_demo).test
    assert kept["embeddings"].shape == (24, 16)
    assert kept["identities"].tolist() == [record.identity for record in records]
    assert kept["image_ids"].tolist() == [record.image_id for record in records]
    recalls = recall_at_k(kept["embeddings"], kept["identities"], [1, 3])
    assert list(figures["recall"].values()) == recalls and printed(result) == [round(r, 4) for r in recalls]
    assert figures["images"] == 24 and figures["cropped"] is True


def test_another_way_of_testing_than_of_training_is_warned_of(run, small_demo):
    assert "warning" not in evaluate(run, small_demo).stderr
    whole = evaluate(run, small_demo, "--uncropped")
    assert "warning: " in whole.stderr and "cropped" in whole.stderr and "whole pictures" in whole.stdout
    assert "32 x 32" in evaluate(run, small_demo, "--image-width", 48).stderr


def test_list_files_give_the_same_figures(run, small_demo, tmp_path):
    records = datasets.demo(small_demo).test
    rows = ["{} {} {}".format(r.image_id, r.identity, r.path.relative_to(small_demo)) for r in records]
    boxes = ["{} {} {} {} {}".format(r.image_id, *r.box) for r in records]
    (tmp_path / "test.txt").write_text("image_id class_id path\n" + "\n".join(rows) + "\n")
    (tmp_path / "bbox.txt").write_text("\n".join(boxes) + "\n")
    lists = ["--dataset", "lists", "--test-txt", tmp_path / "test.txt", "--bbox-txt", tmp_path / "bbox.txt"]
    assert printed(evaluate(run, small_demo, *lists)) == printed(evaluate(run, small_demo))


def test_training_goes_on_from_a_checkpoint(run, small_demo, tmp_path):
    size = SMALL[:4] + SMALL[6:]  # --dim comes from the checkpoint
    result = command(
        *["train.py", "--dataset", "demo", "--data-dir", small_demo, "--pretrained-model", run[0] / "last"],
        *["--iterations", 0, "--output-dir", tmp_path / "on", *size],
    )
    assert result.returncode == 0, result.stderr
    before, after = (checkpoints.Checkpoint(folder / "last").arg_params for folder in (run[0], tmp_path / "on"))
    for name, value in before.items():
        np.testing.assert_array_equal(value.asnumpy(), after[name].asnumpy())


def test_neighbours_are_drawn_and_marked(run, small_demo, tmp_path):
    evaluate(run, small_demo, "--save-embeddings", tmp_path / "e.npz")
    result = command("-m", "cgd.figures", tmp_path / "e.npz", tmp_path / "n.png", "--queries", 3, "--neighbours", 4)
    assert result.returncode == 0, result.stderr
    kept = np.load(str(tmp_path / "e.npz"))
    picture = np.asarray(Image.open(str(tmp_path / "n.png")).convert("RGB"))
    rows = np.sort(np.random.RandomState(0).permutation(24)[:3])
    step, top = figures.SIDE + figures.GAP, 4 * figures.GAP
    for line, query in enumerate(rows):
        away = ((kept["embeddings"] - kept["embeddings"][query]) ** 2).sum(1)
        away[query] = np.inf
        for column, item in enumerate(np.argsort(away)[:4], 1):
            right = kept["identities"][item] == kept["identities"][query]
            frame = picture[line * step + top, column * step + 3 * figures.GAP]
            assert tuple(frame) == (figures.RIGHT if right else figures.WRONG)


def test_help_shows_every_recipes_defaults():
    result = command("train.py", "--help")
    assert result.returncode == 0
    assert re.search(r"--iterations ITERATIONS\s+batches to train on \(cub200 1500, demo", result.stdout)
    assert re.search(r"--margin MARGIN\s+the triplet loss's margin \(0.1\)", result.stdout)


def test_the_released_scripts_flags_are_there():
    result = command("test.py", "--help")
    flags = "image-width image-height batch-size num-workers recallk data-dir train-txt test-txt bbox-txt gpu"
    assert all("--" + flag in result.stdout for flag in flags.split() + ["pretrained-model"])


BAD_TESTS = [
    (["--pretrained-model", "nowhere/net"], "nowhere/net-symbol.json: no such file"),
    (["--data-dir", "nowhere", "--dataset", "cub200"], "nowhere"),
    (["--recallk", "1,x"], "--recallk 1,x"),
    (["--recallk", "0"], "--recallk 0"),
    (["--batch-size", "0"], "--batch-size"),
    (["--gpu", "7"], "--gpu 7"),
    (["--results", "/dev/null/r.json"], "/dev/null/r.json"),
]


@pytest.mark.parametrize("words, told", BAD_TESTS, ids=lambda value: str(value)[:30])
def test_bad_input_to_test_is_one_line_and_code_2(run, small_demo, words, told):
    result = command("test.py", "--pretrained-model", run[0] / "last", "--data-dir", small_demo, "--gpu", -1, *words)
    assert result.returncode == 2
    assert told in result.stderr and "Traceback" not in result.stderr
    assert sum(line.startswith("error: ") for line in result.stderr.splitlines()) == 1


BAD_TRAININGS = [
    (["--config", "MX"], "MX"),
    (["--iterations", "many"], "--iterations many"),
    (["--batch-size", "7"], "--batch-size 7"),
    (["--batch-size", "64"], "32 identities"),
    (["--backbone", "resnet19"], "resnet19"),
    (["--backbone-params", "nowhere.params"], "nowhere.params"),
    (["--test-txt", "LIST"], "--train-txt"),
]


@pytest.mark.parametrize("words, told", BAD_TRAININGS, ids=lambda value: str(value)[:30])
def test_bad_input_to_train_is_one_line_and_code_2(small_demo, tmp_path, words, told):
    scratch = [] if "--backbone-params" in words else ["--from-scratch"]
    output = ["--output-dir", tmp_path / "run", *SMALL, *scratch]
    record = datasets.demo(small_demo).test[0]
    (tmp_path / "list.txt").write_text("image_id class_id path\n1 0 {}\n".format(record.path.relative_to(small_demo)))
    words = [tmp_path / "list.txt" if word == "LIST" else word for word in words]
    result = command("train.py", "--dataset", "demo", "--data-dir", small_demo, *output, *words)
    assert result.returncode == 2
    assert told in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_is_never_written_over(run, small_demo):
    before = sorted((file.name, file.stat().st_mtime_ns) for file in run[0].iterdir())
    result = command(
        *["train.py", "--dataset", "demo", "--data-dir", small_demo, "--from-scratch", "--output-dir", run[0], *SMALL]
    )
    assert result.returncode == 2 and "holds a run already" in result.stderr
    assert before == sorted((file.name, file.stat().st_mtime_ns) for file in run[0].iterdir())


def test_real_photographs_go_through_test(shared, tmp_path):
    """An ImageNet MobileNetV2's descriptors of real pictures, far above chance (1 in 64 classes)."""
    folder = shared / "data" / "caltech256"
    lines = (folder / "test.txt").read_text().splitlines()
    (tmp_path / "some.txt").write_text("\n".join(lines[:1] + lines[1::4]) + "\n")
    weights = shared / "weights" / "mobilenetv2_1.0-imagenet-features-only.params"
    data = ["--dataset", "lists", "--data-dir", folder, "--test-txt", tmp_path / "some.txt"]
    result = command(
        *["train.py", *data, "--train-txt", folder / "train.txt", "--backbone", "mobilenetv2_1.0"],
        *["--backbone-params", weights, "--iterations", 0, "--output-dir", tmp_path / "run"],
        *["--image-width", 96, "--image-height", 96, "--gpu", -1],
    )
    assert result.returncode == 0, result.stderr
    result = command("test.py", "--pretrained-model", tmp_path / "run" / "last", *data, "--gpu", -1)
    assert result.returncode == 0, result.stderr
    assert printed(result)[0] > 0.15
