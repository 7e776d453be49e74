"""train.py, test.py and the picture of neighbours: each once as a process, as a user runs it, the rest in this one."""

import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import train
from cgd import demo, export, quantize
from cgd.data import datasets, images
from cgd.gallery import report as gallery_report
from cgd.gallery import sheet
from cgd.network import checkpoints, int8, onnx_graph
from cgd.retrieval.recall import recall_at_k
from cgd.system import environment
from cgd.system.errors import InputError
from cgd.training import arguments, curves, recipes, trainer
from cgd.training import run as training
from conftest import LONG, children_of, command, lively_network, members_of, running, wait_until

SIZE = "--image-width 32 --image-height 32 --batch-size 8 --images-per-identity 2 --gpu -1".split()
# A small network, and the smallest of the zoo's whose embeddings differ after a few steps from random weights.
SMALL = SIZE + ["--dim", "16", "--backbone", "squeezenet1.1"]


@pytest.fixture(scope="module")
def run(small_demo, tmp_path_factory):
    """A short run of train.py; (its folder, what it printed)."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    result = command(
        *["train.py", "--dataset", "demo", "--data-dir", small_demo, "--from-scratch", "--iterations", 20],
        *["--lr", 1e-3, "--output-dir", folder, "--seed", 1, "--num-workers", 1, *SMALL],
    )
    assert result.returncode == 0, result.stderr
    return folder, result


@pytest.fixture(scope="module")
def lively(tmp_path_factory):
    """The folder of a checkpoint whose embeddings differ by image, as `run` has it."""
    folder = tmp_path_factory.mktemp("lively")
    described = {"dataset": "demo", "image_width": 32, "image_height": 32}
    checkpoints.save(lively_network("resnet18_v1", 32, config="MG"), str(folder / "last"), described)
    return [folder]


def evaluation(run, data_dir, *more):
    """The words of a test.py command."""
    return ["test.py", "--pretrained-model", run[0] / "last", "--data-dir", data_dir, "--gpu", -1, *more]


@pytest.fixture
def evaluate(here):
    """Runs test.py in this process: evaluate(run, data_dir, *more words) -> what it printed."""

    def evaluate(run, data_dir, *more):
        result = here(*evaluation(run, data_dir, *more))
        assert result.returncode == 0, result.stderr
        return result

    return evaluate


def printed(result):
    return [float(recall) for recall in re.findall(r"^R@ +\d+: (\d\.\d{4})$", result.stdout, re.MULTILINE)]


def test_train_reports_last_and_best(run):
    folder, result = run
    assert re.search(r"^last: R@1 \d\.\d{4} .*\(iteration 20, ", result.stdout, re.MULTILINE)
    assert re.search(r"^best: R@1 \d\.\d{4} ", result.stdout, re.MULTILINE)
    assert "warning: --milestones 100,135: not reached in 20 iterations" in result.stderr
    record = json.loads((folder / "arguments.json").read_text())
    assert record["recipe"]["iterations"] == 20 and record["recipe"]["lr"] == 1e-3 and "--seed" in record["command"]
    assert record["tf32_allowed"] is environment.tf32_allowed()


def test_the_seed_decides_the_initial_weights(small_demo, tmp_path, here):
    """Of three runs without an iteration, two with one seed: else the rows of a table would be the same run."""
    found = []
    for number, seed in enumerate((2, 3, 3)):
        words = ["--from-scratch", "--iterations", 0, "--seed", seed, "--output-dir", tmp_path / str(number), *SMALL]
        result = here("train.py", "--dataset", "demo", "--data-dir", small_demo, "--num-workers", 0, *words)
        assert result.returncode == 0, result.stderr
        arrays = checkpoints.Checkpoint(tmp_path / str(number) / "last").arg_params
        found.append(next(value.asnumpy() for name, value in arrays.items() if name.endswith("conv0_weight")))
    assert np.array_equal(found[1], found[2]) and not np.array_equal(found[0], found[1])


def test_the_seed_decides_the_batches(small_demo, tmp_path, here, monkeypatch):
    """Of images, and of their augmentation: with pretrained weights nothing else tells two seeds apart."""
    found = []

    def stop(run, save_every):
        found.append((run.sampler.batch(0), run.sampler.batch(1)))
        raise InputError("seen")

    monkeypatch.setattr(trainer.Trainer, "run", stop)
    for number, seed in enumerate((2, 3, 3)):
        words = ["--from-scratch", "--seed", seed, "--output-dir", tmp_path / str(number), *SMALL]
        here("train.py", "--dataset", "demo", "--data-dir", small_demo, "--num-workers", 0, *words)
    assert found[1] == found[2] and len(set(map(str, found[0] + found[1]))) == 4


def test_fine_tuning_prepares_images_as_the_checkpoint_says(lively, tmp_path):
    for ending in ("-symbol.json", "-0000.params"):
        shutil.copy(str(lively[0] / "last") + ending, str(tmp_path / "net") + ending)
    described = json.loads((lively[0] / "last.json").read_text())
    described.update(image_width=40, image_height=24, mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    (tmp_path / "net.json").write_text(json.dumps(described))
    words = ["--dataset", "demo", "--pretrained-model", str(tmp_path / "net")]
    recipe = train.recipe_of(arguments.parse(words))
    assert (recipe.image_width, recipe.image_height) == (40, 24)
    assert (recipe.mean, recipe.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    recipe = train.recipe_of(arguments.parse([*words, "--image-width", "48", "--std", "0.7,0.8,0.9"]))
    assert (recipe.image_width, recipe.image_height) == (48, 24)
    assert (recipe.mean, recipe.std) == ((0.1, 0.2, 0.3), (0.7, 0.8, 0.9))
    dim = described.pop("dim")
    (tmp_path / "net.json").write_text(json.dumps(described))
    assert train.recipe_of(arguments.parse(words)).dim == dim != 1536  # the graph's


def test_whole_images_and_other_statistics_are_evaluated_as_they_were_trained(small_demo, tmp_path, here):
    own = ["--uncropped", "--mean", "0.1,0.2,0.3", "--std", "0.9,0.7,0.5"]
    words = ["--from-scratch", "--iterations", 0, "--output-dir", tmp_path / "run", *SMALL, *own]
    result = here("train.py", "--dataset", "demo", "--data-dir", small_demo, "--num-workers", 0, *words)
    assert result.returncode == 0, result.stderr
    description = json.loads((tmp_path / "run" / "last.json").read_text())
    assert (description["cropped"], description["mean"]) == (False, [0.1, 0.2, 0.3])
    assert description["std"] == [0.9, 0.7, 0.5]
    result = here(*evaluation([tmp_path / "run"], small_demo, "--num-workers", 0))
    assert "warning" not in result.stderr
    assert printed(result) == [round(recall, 4) for recall in description["recall"].values()]
    other = here(*evaluation([tmp_path / "run"], small_demo, "--num-workers", 0, "--cropped"))
    assert printed(other) != printed(result)


def test_images_need_not_be_square(small_demo, tmp_path, here, monkeypatch):
    """Width and height keep their places from the flags to the description, and in the evaluation."""
    seen = []
    normalise = images.normalise
    monkeypatch.setattr(images, "normalise", lambda x, *rest: seen.append(x.shape[1:3]) or normalise(x, *rest))
    words = ["--from-scratch", "--iterations", 1, "--output-dir", tmp_path / "run", *SMALL, "--image-width", 64]
    result = here("train.py", "--dataset", "demo", "--data-dir", small_demo, "--num-workers", 0, *words)
    assert result.returncode == 0, result.stderr
    description = json.loads((tmp_path / "run" / "last.json").read_text())
    assert (description["image_width"], description["image_height"]) == (64, 32)
    result = here(*evaluation([tmp_path / "run"], small_demo, "--num-workers", 0))
    assert "warning" not in result.stderr
    assert printed(result) == [round(recall, 4) for recall in description["recall"].values()]
    assert set(seen) == {(32, 64)}
    wide = recipes.replace(recipes.RECIPES["demo"], image_width=64, image_height=32, resize_size=72)
    assert trainer.loaders(datasets.load("demo", small_demo), wide).training.view.resized == (72, 36)


def test_a_query_that_is_alone_in_its_class_is_told(run, small_demo, tmp_path, evaluate):
    records = datasets.load("demo", small_demo).test
    others = [record for record in records if record.identity != records[0].identity]
    listed = write_list(tmp_path / "test.txt", [records[0], *others], small_demo)
    lists = ["--dataset", "lists", "--uncropped", "--test-txt", listed]
    told = f"warning: 1 of {len(others) + 1} queries have no other image of their class to retrieve"
    assert told in evaluate(run, small_demo, *lists).stderr
    assert "queries have no other" not in evaluate(run, small_demo).stderr


def test_export_takes_its_flags(run, tmp_path, here, monkeypatch):
    """safetensors by the command; for ONNX, which flag does what, without the package."""
    result = here("-m", "cgd.export", run[0] / "last", tmp_path / "net.safetensors")
    assert result.returncode == 0 and "written: " in result.stdout, result.stderr
    export.write_safetensors(checkpoints.Checkpoint(run[0] / "last"), str(tmp_path / "again.safetensors"))
    assert (tmp_path / "net.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()
    names, taken = ("fold", "dynamic-size", "with-preprocessing"), []
    monkeypatch.setattr(onnx_graph, "export", lambda checkpoint, **flags: taken.append(flags) or model)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # it cannot be imported
    model = SimpleNamespace(SerializeToString=lambda: b"model")
    for name in names:
        result = here("-m", "cgd.export", run[0] / "last", tmp_path / "net.onnx", f"--{name}")
        assert result.returncode == 0 and "not compared with MXNet" in result.stdout, result.stderr
    keys = [name.replace("-", "_") for name in names]
    assert taken == [{key: key == given for key in keys} for given in keys]
    assert (tmp_path / "net.onnx").read_bytes() == b"model"


def test_test_prints_what_train_measured(run, small_demo):
    result = command(*evaluation(run, small_demo))
    assert result.returncode == 0, result.stderr
    kept = json.loads((run[0] / "last.json").read_text())["recall"]
    assert printed(result) == [round(recall, 4) for recall in kept.values()]
    assert "| Test    |        4 |      24 |" in result.stdout
    assert re.search(r"images/s, search \d", result.stdout)


def test_a_quantised_checkpoint_is_evaluated_like_any_other(lively, small_demo, tmp_path, here, evaluate):
    words = ["-m", "cgd.quantize", lively[0] / "last", "-o", tmp_path / "int8", "--data-dir", small_demo]
    result = here(*words, "--images", 5)
    assert result.returncode == 0 and "5 training images; cosine similarity" in result.stdout, result.stderr
    words = ["--pretrained-model", tmp_path / "int8", "--results", tmp_path / "r.json"]
    result = here(*evaluation(lively, small_demo, *words, "--save-embeddings", tmp_path / "int8.npz"))
    assert result.returncode == 0 and len(printed(result)) == 4
    assert json.loads((tmp_path / "r.json").read_text())["dtype"] == "int8"
    evaluate(lively, small_demo, "--save-embeddings", tmp_path / "float32.npz")
    found, expected = (np.load(str(tmp_path / f"{name}.npz"))["embeddings"] for name in ("int8", "float32"))
    whole, rest = int8.similarities(expected, found)
    assert whole.mean() > 0.9 and rest.mean() > 0.4
    result = here(*evaluation(lively, small_demo, *words[:2], "--dtype", "bfloat16"))
    assert_one_line(result, "cannot be run in bfloat16")
    assert "bfloat16 can be slower" not in result.stderr
    result = here("-m", "cgd.quantize", tmp_path / "int8", "-o", tmp_path / "again", "--data-dir", small_demo)
    assert_one_line(result, "is quantised already")
    for file in ("net.onnx", "net.safetensors"):
        assert_one_line(here("-m", "cgd.export", tmp_path / "int8", tmp_path / file), "give the checkpoint that it was")


def test_the_images_that_give_the_ranges_are_spread_and_prepared_as_for_evaluation(small_demo):
    records = datasets.load("demo", small_demo).train
    description = {"image_width": 32, "image_height": 24, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}
    options = SimpleNamespace(images=5, batch_size=2, num_workers=0, skip_unreadable=0)
    found = quantize.training_images(description, records, options).asnumpy()
    expected = []
    for number in (0, 5, 11, 17, 23):
        whole = images.read_image(records[number].path)
        pixels = images.resize(images.crop(whole, records[number].box), (32, 24)).asnumpy()
        expected.append(((pixels / 255 - description["mean"]) / description["std"]).transpose(2, 0, 1))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_int8_that_loses_what_distinguishes_the_images_is_written_with_a_warning(
    run, small_demo, tmp_path, here, monkeypatch
):
    net = checkpoints.Checkpoint(run[0] / "last")
    made = net.symbol, dict(net.arg_params, **net.aux_params), np.array([[0.9, 0.8], [0.1, 0.2]])
    monkeypatch.setattr(int8, "quantize_and_compare", lambda *_: made)
    result = here("-m", "cgd.quantize", run[0] / "last", "-o", tmp_path / "int8", "--data-dir", small_demo)
    assert result.returncode == 0 and "share: mean 0.1500, least 0.1000\n" in result.stdout
    assert "warning: what distinguishes the images has changed" in result.stderr
    endings = {"-symbol.json", "-0000.params", ".json"}
    assert {file.name for file in tmp_path.iterdir()} == {"int8" + ending for ending in endings}


def test_an_onnx_file_is_refused_where_a_checkpoint_is_needed(small_demo, tmp_path, here):
    told = "net.onnx: is an ONNX file; give the checkpoint that it was made from"
    (tmp_path / "net.onnx").touch()
    assert_one_line(here("-m", "cgd.quantize", tmp_path / "net.onnx", "-o", tmp_path / "int8"), told)
    with pytest.raises(InputError, match="is an ONNX file"):
        checkpoints.Checkpoint(tmp_path / "net.onnx")


@pytest.mark.skipif(not LONG, reason="a process of its own, because oneDNN looks for its limit once")
def test_a_cpu_without_bfloat16_is_told(lively, small_demo):
    result = command(*evaluation(lively, small_demo, "--dtype", "bfloat16"), DNNL_MAX_CPU_ISA="AVX2")
    assert_one_line(result, "use --dtype float32")


def test_what_differs_too_much_in_int8_is_not_written(run, small_demo, tmp_path, here, monkeypatch):
    for alike, told in (([1, 0.1, 0.2], "mean 0.4333"), ([1, 1, np.nan], "mean nan")):
        found = None, None, np.array([alike, alike])
        monkeypatch.setattr(int8, "quantize_and_compare", lambda *_, found=found: found)
        result = here("-m", "cgd.quantize", run[0] / "last", "-o", tmp_path / "int8", "--data-dir", small_demo)
        assert_one_line(result, "int8: not written; 24 training images")
        assert told in result.stderr
    assert not list(tmp_path.iterdir())


BAD_QUANTISATIONS = [
    (["-o", "CHECKPOINT"], "last-symbol.json exists; choose another name"),
    (["-o", "FOLDER"], "expected a path such as"),
    (["-o", "FOLDER/new/"], "expected a path such as"),
    (["-o", ""], "after -o: expected a value, found an empty one"),
    (["-o", "/dev/null/new"], "/dev/null/new-symbol.json: cannot be written"),
    (["-o", "FOLDER/new", "--dataset", "lists", "--test-txt", "LIST"], "--train-txt"),
]


@pytest.mark.parametrize("words, told", BAD_QUANTISATIONS, ids=str)
def test_bad_input_to_quantize_is_one_line_and_code_2(run, small_demo, tmp_path, words, told, here):
    listed = write_list(tmp_path / "list.txt", datasets.load("demo", small_demo).test, small_demo)
    (tmp_path / "folder").mkdir()
    places = {"CHECKPOINT": str(run[0] / "last"), "FOLDER": str(tmp_path / "folder"), "LIST": str(listed)}
    for word, place in places.items():
        words = [given.replace(word, place) for given in words]
    before = {file: file.read_bytes() for file in run[0].glob("last*")}
    assert_one_line(here("-m", "cgd.quantize", run[0] / "last", *words, "--data-dir", small_demo), told)
    assert before == {file: file.read_bytes() for file in run[0].glob("last*")}
    assert not list((tmp_path / "folder").iterdir())


def test_an_exported_model_replaces_a_file_only_if_its_descriptors_are_right(run, tmp_path, here, monkeypatch):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    file = tmp_path / "new" / "net.onnx"
    result = here("-m", "cgd.export", run[0] / "last", file)
    assert result.returncode == 0 and "differ from MXNet's by" in result.stdout, result.stderr
    assert result.stdout.endswith(f"written: {file}\n")
    before = file.read_bytes()
    monkeypatch.setattr(onnx_graph, "difference", lambda *_: float("nan"))
    assert_one_line(here("-m", "cgd.export", run[0] / "last", file, "--fold"), "net.onnx: not written; its descriptors")
    assert file.read_bytes() == before and len(list(file.parent.iterdir())) == 1


def test_without_onnx_the_export_names_it(run, tmp_path, here, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    for file, told in (
        ("net.onnx", "pip install onnx 'numpy<2'"),
        (".onnx", "ends with .onnx"),
        ("net", "ends with .onnx"),
    ):
        assert_one_line(here("-m", "cgd.export", run[0] / "last", tmp_path / "new" / file), told)
    assert not (tmp_path / "new").exists()


def test_more_measures_and_a_comparison_with_other_results(run, small_demo, tmp_path, evaluate, here):
    saved, results = tmp_path / "e.npz", tmp_path / "whole.json"
    evaluate(run, small_demo, "--uncropped", "--num-workers", 0, "--results", results)
    words = ["--metrics", "r-precision,precision@2", "--confidence", results, "--num-workers", 0]
    result = evaluate(run, small_demo, *words, "--results", tmp_path / "cropped.json", "--save-embeddings", saved)
    with np.load(str(saved)) as kept:
        x = kept["embeddings"].astype(np.float64)
        distances = np.linalg.norm(x[:, None] - x, axis=2) + 9 * np.eye(24)  # itself last
        order = np.argsort(distances, axis=1)
        right = kept["identities"][order] == kept["identities"][:, None]
    assert f"r-precision: {right[:, :5].mean():.4f}\nprecision@2: {right[:, :2].mean():.4f}\n" in result.stdout
    whole, cropped = (json.loads((tmp_path / name).read_text()) for name in ("whole.json", "cropped.json"))
    assert cropped["hits_at_1"] == "".join(map(str, right[:, 0].astype(int)))
    assert [entry["images"] for entry in cropped["classes"]] == [6] * 4
    shares = [entry["R@1"] for entry in cropped["classes"]]
    assert shares == sorted(shares) and np.mean(shares) == pytest.approx(right[:, 0].mean())
    gain = cropped["recall"]["1"] - whole["recall"]["1"]
    found = re.search(r"R@1 minus that of .*: (\S+), 95 % from (\S+) to (\S+)\n", result.stdout)
    difference, low, high = map(float, found.groups())
    assert difference == pytest.approx(gain, abs=1e-4) and low <= difference <= high
    (tmp_path / "other.json").write_text(json.dumps(dict(whole, queries_sha1="of others")))
    (tmp_path / "among.json").write_text(json.dumps(dict(whole, searched_sha1="others")))
    messages = {"other.json": "is of other queries", "among.json": "is of other images to search in"}
    for name, message in dict(messages, **{"e.npz": "no file of", "none": "No such file"}).items():
        wrong = here(*evaluation(run, small_demo, "--confidence", tmp_path / name))
        assert wrong.returncode == 2 and message in wrong.stderr.splitlines()[-1] and "R@" not in wrong.stdout


def test_embeddings_and_results_are_kept(run, small_demo, tmp_path, evaluate):
    result = evaluate(
        *[run, small_demo, "--save-embeddings", tmp_path / "e.npz", "--results", tmp_path / "r.json"],
        *["--recallk", "1,3", "--batch-size", 5, "--num-workers", 0],
    )
    kept, figures = np.load(str(tmp_path / "e.npz")), json.loads((tmp_path / "r.json").read_text())
    records = datasets.load("demo", small_demo).test
    assert kept["embeddings"].shape == (24, 16)
    assert kept["identities"].tolist() == [record.identity for record in records]
    folders = [Path(record.path).parent.name for record in records]
    assert kept["class_names"].tolist() == folders and len(set(folders)) == 4
    assert kept["class_ids"].tolist() == [int(folder[:3]) for folder in folders]
    assert kept["image_ids"].tolist() == [record.image_id for record in records]
    recalls = recall_at_k(kept["embeddings"], kept["identities"], [1, 3])
    assert list(figures["recall"].values()) == recalls and printed(result) == [round(r, 4) for r in recalls]
    assert figures["images"] == 24 and figures["cropped"] is True


def test_another_way_of_testing_than_of_training_is_warned_of(run, small_demo, evaluate):
    assert "warning" not in evaluate(run, small_demo).stderr
    whole = evaluate(run, small_demo, "--uncropped")
    assert "warning: " in whole.stderr and "cropped" in whole.stderr and "whole images" in whole.stdout
    assert "32 x 32" in evaluate(run, small_demo, "--image-width", 48).stderr


def described(run, folder, **changes):
    """A copy of the run's checkpoint with another description, as `run` has it."""
    for ending in ("-symbol.json", "-0000.params"):
        shutil.copy(str(run[0] / ("last" + ending)), str(folder / ("last" + ending)))
    description = dict(json.loads((run[0] / "last.json").read_text()), **changes)
    (folder / "last.json").write_text(json.dumps(description))
    return [folder]


def test_the_checkpoint_says_whether_pictures_are_cropped(run, small_demo, tmp_path, evaluate):
    whole = described(run, tmp_path, cropped=False)
    result = evaluate(whole, small_demo)
    assert ", whole images" in result.stdout and "warning" not in result.stderr
    assert printed(result) == printed(evaluate(run, small_demo, "--uncropped"))
    result = evaluate(whole, small_demo, "--cropped")
    assert ", cropped images" in result.stdout
    assert "trained on whole images and is tested on cropped ones" in result.stderr
    records = datasets.load("demo", small_demo).test
    boxes = ["{} {} {} {} {}".format(r.image_id, *r.box) for r in records]
    (tmp_path / "bbox.txt").write_text("\n".join(boxes) + "\n")
    lists = ["--dataset", "lists", "--test-txt", write_list(tmp_path / "test.txt", records, small_demo)]
    result = evaluate(whole, small_demo, *lists, "--bbox-txt", tmp_path / "bbox.txt")
    assert ", whole images" in result.stdout and "warning: --bbox-txt is not used" in result.stderr
    result = evaluate(run, small_demo, *lists)
    assert ", whole images" in result.stdout
    assert "trained on cropped images and is tested on whole ones" in result.stderr


def test_the_released_scripts_flags_take_lists_of_ones_own(run, small_demo, tmp_path, evaluate):
    """With the default data set, cub200, and training pictures that are not there."""
    cub = described(run, tmp_path, dataset="cub200", mean=[0, 0, 0], std=[1, 1, 1])
    dataset = datasets.load("demo", small_demo)
    test = write_list(tmp_path / "test.txt", dataset.test, small_demo)
    train = tmp_path / "train.txt"
    train.write_text("image_id class_id path\n1 0 gone/1.jpg\n2 1 gone/2.jpg\n")
    result = evaluate(cub, small_demo, "--uncropped", "--test-txt", test, "--train-txt", train)
    assert "| Train   |        2 |       2 |" in result.stdout and len(printed(result)) == 4
    (line,) = [line for line in result.stderr.splitlines() if "the official one" in line]
    assert line.startswith("warning: ") and "4 classes and 24 images, the official one 100 and 5924" in line
    train.unlink()
    again = evaluate(cub, small_demo, "--uncropped", "--test-txt", test, "--train-txt", train)
    assert printed(again) == printed(result) and "Train" not in again.stdout
    assert "train.txt" in again.stderr


def test_class_ids_of_a_list_are_kept_as_listed(run, small_demo, tmp_path, evaluate):
    records = datasets.load("demo", small_demo).test
    records = [record._replace(identity=7 + 5 * record.identity) for record in records]
    lists = ["--dataset", "lists", "--test-txt", write_list(tmp_path / "test.txt", records[:12], small_demo)]
    lists += ["--gallery-txt", write_list(tmp_path / "gallery.txt", records[6:], small_demo)]
    evaluate(run, small_demo, *lists, "--save-embeddings", tmp_path / "e.npz")
    kept = np.load(str(tmp_path / "e.npz"))
    assert kept["class_ids"].tolist() == [record.identity for record in records[:12] + records[6:]]
    assert kept["identities"].tolist() == [(number - 7) // 5 for number in kept["class_ids"]]
    assert set(kept["class_names"].tolist()) == {""}


def test_list_files_give_the_same_figures(run, small_demo, tmp_path, evaluate):
    records = datasets.load("demo", small_demo).test
    boxes = ["{} {} {} {} {}".format(r.image_id, *r.box) for r in records]
    (tmp_path / "bbox.txt").write_text("\n".join(boxes) + "\n")
    listed = write_list(tmp_path / "test.txt", records, small_demo)
    lists = ["--dataset", "lists", "--test-txt", listed, "--bbox-txt", tmp_path / "bbox.txt"]
    assert printed(evaluate(run, small_demo, *lists)) == printed(evaluate(run, small_demo))


def test_held_out_classes_choose_best_and_the_test_split_is_evaluated_once(small_demo, tmp_path, here):
    """What was logged is the recall of a list of the held-out classes; the last lines are what test.py prints."""
    data = ["--dataset", "demo", "--data-dir", small_demo]
    words = ["--from-scratch", "--iterations", 4, "--eval-every", 2, "--output-dir", tmp_path / "run", *SMALL]
    result = here("train.py", *data, "--validation-classes", 0.5, *words, "--batch-size", 4)
    assert result.returncode == 0, result.stderr
    assert "validation: the last 2 training classes, 12 images" in result.stdout
    held = [record for record in datasets.load("demo", small_demo).train if record.identity >= 2]
    listed = write_list(tmp_path / "held.txt", held, small_demo)
    lists = ["--dataset", "lists", "--data-dir", small_demo, "--test-txt", listed]
    lists += ["--bbox-txt", small_demo / "bounding_boxes.txt"]
    for name in ("last", "best"):
        prefix = ["test.py", "--gpu", -1, "--pretrained-model", tmp_path / "run" / name]
        logged = json.loads((tmp_path / "run" / f"{name}.json").read_text())
        assert printed(here(*prefix, *lists)) == [round(recall, 4) for recall in logged["recall"].values()]
        assert logged["recall_of"] == "validation classes"
        (line,) = [line for line in result.stdout.splitlines() if line.startswith(f"{name}, test split: ")]
        assert re.findall(r"R@\d+ (\d\.\d{4})", line) == [f"{r:.4f}" for r in printed(here(*prefix, *data))]
        kept = json.loads((tmp_path / "run" / "test.json").read_text())[name]
        assert [round(recall, 4) for recall in kept.values()] == printed(here(*prefix, *data))
    assert json.loads((tmp_path / "run" / "test.json").read_text())["iterations"]["last"] == 4
    result = here("train.py", "--resume", tmp_path / "run", "--iterations", 5)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "run" / "test.json").read_text())["iterations"]["last"] == 5


def test_pooled_vectors_are_evaluated_beside_the_embedding(lively, small_demo, tmp_path, evaluate):
    ranks = "1,2,3,4,6,9"
    result = evaluate(lively, small_demo, "--pooled", "--results", tmp_path / "r.json", "--recallk", ranks)
    view = images.EvalView(datasets.load("demo", small_demo).test, (32, 32))
    pictures = environment.mx.nd.array(np.stack([view[number][0] for number in range(24)]), dtype="uint8")
    checkpoint = checkpoints.Checkpoint(lively[0] / "last")
    x = images.normalise(pictures, checkpoint.description["mean"], checkpoint.description["std"])
    identities, figures = [record.identity for record in view.records], []
    for net in (checkpoint, *map(checkpoint.pooled().get, "MG")):
        vectors = net.graph(environment.mx.cpu())(x).asnumpy()
        figures.append(recall_at_k(vectors, np.array(identities), list(map(int, ranks.split(",")))))
    assert len(set(map(tuple, figures))) == 3
    assert printed(result) == [round(recall, 4) for each in figures for recall in each]
    kept = json.loads((tmp_path / "r.json").read_text())["pooled"]
    assert {letter: list(recalls.values()) for letter, recalls in kept.items()} == dict(zip("MG", figures[1:]))


def test_training_goes_on_from_a_checkpoint(run, small_demo, tmp_path, here, capfd):
    result = here(
        *["train.py", "--dataset", "demo", "--data-dir", small_demo, "--pretrained-model", run[0] / "last"],
        *["--iterations", 0, "--output-dir", tmp_path / "on", *SIZE],  # --dim is the checkpoint's
    )
    assert result.returncode == 0, result.stderr
    before, after = (checkpoints.Checkpoint(folder / "last").arg_params for folder in (run[0], tmp_path / "on"))
    for name, value in before.items():
        np.testing.assert_array_equal(value.asnumpy(), after[name].asnumpy())
    assert " was trained on " not in result.stderr
    training.warn_of_another_crop(str(run[0] / "last"), datasets.without_boxes(datasets.load("demo", small_demo)))
    assert "last was trained on cropped images; now they are whole ones, unless" in capfd.readouterr().err
    again = ["train.py", "--dataset", "demo", "--data-dir", small_demo, "--pretrained-model", run[0] / "last"]
    assert_one_line(here(*again, "--gem-p", 5), "--gem-p 5.0: the checkpoint {}/last has 3.0".format(run[0]))


def test_curves_that_cannot_be_drawn_do_not_spoil_a_run(small_demo, tmp_path, here, monkeypatch):
    monkeypatch.setattr(curves, "draw", lambda *_: 1 / 0)
    result = here(
        *["train.py", "--dataset", "demo", "--data-dir", small_demo, "--from-scratch", "--iterations", 1],
        *["--output-dir", tmp_path / "run", "--num-workers", 0, *SMALL],
    )
    assert result.returncode == 0 and "warning: the curves could not be drawn: division by zero" in result.stderr
    assert re.search(r"^last: R@1 \d\.\d{4} ", result.stdout, re.MULTILINE)


def test_neighbours_are_drawn_and_marked(run, small_demo, tmp_path, evaluate):
    evaluate(run, small_demo, "--save-embeddings", tmp_path / "e.npz")
    result = command(
        "-m", "cgd.gallery.sheet", tmp_path / "e.npz", tmp_path / "n.png", "--queries", 3, "--neighbours", 4
    )
    assert result.returncode == 0, result.stderr
    kept = np.load(str(tmp_path / "e.npz"))
    picture = np.asarray(Image.open(str(tmp_path / "n.png")).convert("RGB"))
    rows = np.sort(np.random.RandomState(0).permutation(24)[:3])
    step, top = sheet.SIDE + sheet.GAP, 4 * sheet.GAP

    def assert_shows(y, x, item):
        """Inside the frame and without the corner with its mark, the image, cropped to its box."""
        left, upper, width, height = kept["boxes"][item].tolist()
        image = Image.open(kept["paths"][item]).crop((left, upper, left + width, upper + height))
        shown = np.asarray(image.resize((sheet.SIDE, sheet.SIDE), Image.BILINEAR))
        inside = slice(sheet.FRAME, sheet.SIDE - 20)
        np.testing.assert_array_equal(picture[y:, x:][inside, inside], shown[inside, inside])

    for line, query in enumerate(rows):
        assert_shows(line * step + top, sheet.GAP, query)
        away = ((kept["embeddings"] - kept["embeddings"][query]) ** 2).sum(1)
        away[query] = np.inf
        for column, item in enumerate(np.argsort(away)[:4], 1):
            right = kept["identities"][item] == kept["identities"][query]
            frame = picture[line * step + top, column * step + 3 * sheet.GAP]
            assert tuple(frame) == (sheet.RIGHT if right else sheet.WRONG)
            assert_shows(line * step + top, column * step + 3 * sheet.GAP, item)


def test_neighbours_are_drawn_of_embeddings_kept_before_there_were_class_ids(run, small_demo, tmp_path, evaluate, here):
    evaluate(run, small_demo, "--save-embeddings", tmp_path / "e.npz")
    kept = dict(np.load(str(tmp_path / "e.npz")))
    del kept["class_ids"], kept["class_names"]
    np.savez(str(tmp_path / "old.npz"), **kept)
    result = here("-m", "cgd.gallery.sheet", tmp_path / "old.npz", tmp_path / "n.png")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "n.png").exists()


@pytest.mark.parametrize(
    "file, value, words, told",
    [
        ("n.psd", 1, [], "n.psd: expected a name that ends with .png or .jpg"),
        ("n.png", np.nan, [], "e.npz: its embeddings are not finite"),
        ("n.jpg", 1, ["--queries", 700], "n.jpg: JPEG has no room for 232 x 72832 pixels; expected a name that"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(tmp_path, here, file, value, words, told):
    count = 700
    arrays = dict(embeddings=np.full((count, 2), value), identities=np.zeros(count), gallery=np.zeros(count, bool))
    arrays.update(boxes=np.zeros((count, 4)), paths=np.array(["gone.png"] * count))
    np.savez(str(tmp_path / "e.npz"), **arrays)
    words = [tmp_path / "e.npz", tmp_path / file, "--neighbours", 1, *words]
    assert_one_line(here("-m", "cgd.gallery.sheet", *words), told)


def page_data(file):
    """The data of a page that test.py --html wrote."""
    return json.loads(re.search('id="data">(.*?)</script>', file.read_text(encoding="utf-8")).group(1))


def test_a_page_shows_the_neighbours_of_a_sample(run, small_demo, tmp_path, evaluate):
    files = ["--html", tmp_path / "page.html", "--html-queries", 8, "--save-embeddings", tmp_path / "e.npz"]
    result = evaluate(run, small_demo, *files)
    page, kept = page_data(tmp_path / "page.html"), np.load(str(tmp_path / "e.npz"))
    assert [value for _, value in page["recalls"]] == printed(result)
    assert ["queries", "24"] in page["facts"] and page["note"].startswith("8 of 24 queries")
    assert sorted(page["pictures"][row["query"]][1] for row in page["rows"]) == [0, 0, 1, 1, 2, 2, 3, 3]
    numbers = {Path(path).name: number for number, path in enumerate(kept["paths"])}
    number_of = [numbers[Path(name).name] for name, *_ in page["pictures"]]
    for row in page["rows"]:
        query = kept["embeddings"][number_of[row["query"]]].astype(float)
        away = np.sqrt(((kept["embeddings"] - query) ** 2).sum(1))
        away[number_of[row["query"]]] = np.inf
        assert [number_of[item] for item in row["items"]][:10] == np.argsort(away)[:10].tolist()
        assert np.allclose(row["distances"][:10], np.sort(away)[:10], atol=1e-4)


def test_help_shows_every_recipes_defaults(here):
    result = here("train.py", "--help")
    assert result.returncode == 0
    text = " ".join(result.stdout.split())
    assert "--iterations N number of batches to train on (1500; sop 9300, inshop 4040, demo 150)" in text
    assert "--margin X margin of the triplet loss (0.1)" in text


def test_the_released_scripts_flags_are_there(here):
    result = here("test.py", "--help")
    flags = "image-width image-height batch-size num-workers recallk data-dir train-txt test-txt bbox-txt gpu"
    assert all("--" + flag in result.stdout for flag in flags.split() + ["pretrained-model"])


def write_list(file, records, folder):
    rows = ["{} {} {}".format(r.image_id, r.identity, Path(r.path).relative_to(folder)) for r in records]
    file.write_text("\n".join(["image_id class_id path", *rows]) + "\n")
    return file


def test_queries_are_searched_in_their_gallery(run, small_demo, tmp_path, evaluate, here):
    """Train, evaluate and draw with a gallery; the recall is that of the descriptors that were kept."""
    dataset = datasets.load("demo", small_demo)
    queries = write_list(tmp_path / "queries.txt", dataset.test[::6], small_demo)
    others = [record for number, record in enumerate(dataset.test) if number % 6]
    gallery = write_list(tmp_path / "gallery.txt", others, small_demo)
    lists = ["--dataset", "lists", "--test-txt", queries, "--gallery-txt", gallery]
    written = ["--save-embeddings", tmp_path / "e.npz", "--html", tmp_path / "page.html", "--link-images"]
    result = evaluate(run, small_demo, *lists, "--recallk", "1,20", *written, "--metrics", "precision@1")
    assert "| Query   |        4 |       4 |" in result.stdout and "| Gallery |        4 |      20 |" in result.stdout
    kept = np.load(str(tmp_path / "e.npz"))
    assert kept["gallery"].tolist() == [False] * 4 + [True] * 20
    x, y = kept["embeddings"][:4].astype(float), kept["embeddings"][4:].astype(float)
    nearest = ((x[:, None] - y[None]) ** 2).sum(2).argmin(1)
    expected = np.mean(kept["identities"][4:][nearest] == kept["identities"][:4])
    assert printed(result) == [round(expected, 4), 1.0]
    assert f"precision@1: {expected:.4f}" in result.stdout  # in the gallery, too
    cropped = ["--bbox-txt", small_demo / "bounding_boxes.txt", "--save-embeddings", tmp_path / "c.npz"]
    evaluate(run, small_demo, *lists, *cropped)
    boxes = [record.box for record in dataset.test[::6] + others]
    assert np.load(str(tmp_path / "c.npz"))["boxes"].tolist() == list(map(list, boxes)) and not kept["boxes"].any()
    page = page_data(tmp_path / "page.html")
    first = [page["pictures"][row["items"][0]] for row in page["rows"]]
    assert [(tmp_path / picture[-1][0]).resolve() for picture in first] == [Path(others[n].path) for n in nearest]
    assert ["gallery", "20"] in page["facts"] and page["recalls"][0] == ["R@1", round(expected, 4)]
    picture = here("-m", "cgd.gallery.sheet", tmp_path / "e.npz", tmp_path / "n.png", "--queries", 9, "--neighbours", 3)
    assert picture.returncode == 0, picture.stderr
    step = sheet.SIDE + sheet.GAP
    pixels = np.asarray(Image.open(str(tmp_path / "n.png")).convert("RGB"))
    assert pixels.shape[:2] == (4 * step + 4 * sheet.GAP, 4 * step + 3 * sheet.GAP)
    right = [tuple(pixels[n * step + 4 * sheet.GAP, step + 3 * sheet.GAP]) == sheet.RIGHT for n in range(4)]
    assert np.mean(right) == expected
    train = write_list(tmp_path / "train.txt", dataset.train, small_demo)
    result = here(
        *["train.py", *lists, "--train-txt", train, "--data-dir", small_demo, "--pretrained-model", run[0] / "last"],
        *["--iterations", 0, "--output-dir", tmp_path / "run", "--recallk", "1,20", *SIZE],
    )
    assert result.returncode == 0, result.stderr
    assert "R@20 1.0000" in result.stdout


@pytest.fixture
def with_broken_pictures(small_demo, tmp_path):
    """A copy of the demo set in which a training and a test picture are cut off; (folder, their names)."""
    folder = tmp_path / "broken"
    shutil.copytree(str(small_demo), str(folder))
    dataset = datasets.load("demo", folder)
    broken = [Path(dataset.train[0].path), Path(dataset.test[0].path)]
    for path in broken:
        path.write_bytes(path.read_bytes()[:700])
    return folder, [path.name for path in broken]


def test_unreadable_pictures_in_training_are_told_and_tolerated(with_broken_pictures, tmp_path, here):
    folder, names = with_broken_pictures
    # all 24 training pictures in each batch, so that the broken one is met
    train = ["train.py", "--dataset", "demo", "--data-dir", folder, "--from-scratch", "--iterations", 2, "--gpu", -1]
    train += ["--batch-size", 24, "--images-per-identity", 6, "--dim", 16, "--image-width", 32, "--image-height", 32]
    train += ["--backbone", "squeezenet1.1"]
    result = here(*train, "--output-dir", tmp_path / "a")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert names[0] in result.stderr and "--skip-unreadable N" in result.stderr
    result = here(*train, "--output-dir", tmp_path / "b", "--skip-unreadable", 1)
    assert result.returncode == 2 and names[1] in result.stderr.splitlines()[-1]
    result = here(*train, "--output-dir", tmp_path / "c", "--skip-unreadable", 2)
    assert result.returncode == 0, result.stderr
    for name in names:
        assert sum(name in line for line in result.stderr.splitlines()) == 1


def test_unreadable_pictures_in_a_test_are_told_with_the_result(run, with_broken_pictures, tmp_path, evaluate, here):
    folder, names = with_broken_pictures
    result = here(*evaluation(run, folder))
    assert result.returncode == 2 and names[1] in result.stderr and "R@" not in result.stdout
    files = ["--results", tmp_path / "r.json", "--save-embeddings", tmp_path / "e.npz"]
    result = evaluate(run, folder, "--skip-unreadable", 3, *files)
    assert "1 skipped as unreadable" in result.stdout and names[1] in result.stderr
    assert json.loads((tmp_path / "r.json").read_text())["images"] == 23
    kept = np.load(str(tmp_path / "e.npz"))
    assert len(kept["embeddings"]) == len(kept["paths"]) == 23
    assert not any(path.endswith(names[1]) for path in kept["paths"])
    assert printed(result) == [round(r, 4) for r in recall_at_k(kept["embeddings"], kept["identities"], [1, 2, 4, 8])]


def test_a_stop_leaves_a_usable_checkpoint_and_no_processes(small_demo, tmp_path, evaluate, start):
    """Ctrl-C in a terminal, which goes to all processes; test_resume.py sends SIGTERM to one."""
    words = ["train.py", "--dataset", "demo", "--data-dir", small_demo, "--from-scratch", "--iterations", 10**6]
    words += ["--eval-every", 10**6, "--output-dir", tmp_path / "run", "--num-workers", 2, *SMALL]
    told, log = tmp_path / "told.txt", tmp_path / "run" / "log.jsonl"
    with open(told, "w") as file:
        process = start(*words, stderr=file)
    assert wait_until(lambda: log.exists() and log.read_text(), 120), told.read_text()
    assert len(children_of(process.pid)) == 4  # two that decode for training, and two for evaluation
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(120) == 130, told.read_text()
    assert "Traceback" not in told.read_text() and told.read_text().rstrip().endswith("interrupted")
    assert wait_until(lambda: not any(map(running, members_of(process.pid))))
    description = checkpoints.Checkpoint(tmp_path / "run" / "last").description
    assert description["iteration"] >= 10
    assert [file.name for file in (tmp_path / "run").iterdir() if file.name.startswith(".")] == []
    evaluate([tmp_path / "run"], small_demo)


def assert_one_line(result, told):
    """Exit code 2 and one line that says it, beside progress and notices."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert told in line


BAD_TESTS = [
    (["--pretrained-model", "nowhere/net"], "nowhere/net-symbol.json: no such file"),
    (["--data-dir", "nowhere", "--dataset", "cub200"], "nowhere: no such folder"),
    (["--data-dir", "checkpoints", "--dataset", "cub200"], "checkpoints/image_class_labels.txt"),
    (["--dataset", "cub"], "invalid choice: 'cub'"),
    (["--recallk", "1,x"], "'1,x'"),
    (["--recallk", "0"], "expected whole numbers from 1"),
    (["--recallk", "1,24"], "Recall@24 of the test split: each query is searched in 23 images"),
    (["--batch-size", "0"], "--batch-size: expected a whole number from 1, found '0'"),
    (["--batch-size", "many"], "--batch-size: expected a whole number from 1, found 'many'"),
    (["--num-workers", "-1"], "--num-workers"),
    (["--skip-unreadable", "-1"], "--skip-unreadable"),
    (["--image-width", "-5"], "--image-width"),
    (["--gpu", "7"], "--gpu 7"),
    (["--results", "/dev/null/r.json"], "/dev/null/r.json"),
    (["--results", "tests"], "tests: is a folder"),
    (["--results", "DESCRIPTION"], "last.json: is a file that this command reads; choose another name"),
    (["--save-embeddings", "/proc/e.npz"], "/proc/e.npz: cannot be written"),
    (["--save-embeddings", "e.txt"], ".npz"),
    (["--html", "tests"], "tests: is a folder"),
    (["--link-images"], "expected with --html FILE.html"),
    (["--html-queries", "0"], "--html-queries: expected a whole number from 1"),
    (["--cropped", "--uncropped"], "not allowed with"),
    (["--dataset", "lists", "--test-txt", "LIST", "--cropped"], "--bbox-txt"),
    (["--dataset", "inshop", "--test-txt", "LIST"], "--gallery-txt"),
    (["--what"], "unrecognized arguments: --what"),
]


@pytest.mark.parametrize("words, told", BAD_TESTS, ids=lambda value: str(value)[:30])
def test_bad_input_to_test_is_one_line_and_code_2(run, small_demo, tmp_path, words, told, here):
    listed = write_list(tmp_path / "list.txt", datasets.load("demo", small_demo).test, small_demo)
    words = [{"LIST": listed, "DESCRIPTION": run[0] / "last.json"}.get(word, word) for word in words]
    result = here(*evaluation(run, small_demo, *words))
    assert_one_line(result, told)
    assert "R@" not in result.stdout


BAD_TRAININGS = [
    (["--config", "MX"], "MX"),
    (["--output-dir", "/dev/null/run"], "--output-dir /dev/null/run: /dev/null/run/log.jsonl: cannot be written"),
    (["--iterations", "many"], "--iterations many: not a whole number"),
    (["--iterations", "-1"], "--iterations -1: expected a number from 0"),
    (["--lr", "nan"], "--lr nan"),
    (["--milestones", "3,x"], "--milestones 3,x"),
    (["--smoothing", "2"], "--smoothing 2: expected a number from 0 to 1"),
    (["--dim", "0"], "--dim 0: expected a number from 1"),
    (["--batch-size", "0"], "--batch-size 0"),
    (["--batch-size", "7"], "--batch-size 7"),
    (["--resize-size", "31"], "--resize-size 31: expected --image-width 32 or more"),
    (["--batch-size", "2"], "--batch-size 2: expected at least two identities"),
    (["--ranking-weight", "0", "--classification-weight", "0"], "nothing to train"),
    (["--images-per-identity", "1"], "--images-per-identity 1: expected 2 or more, for positives"),
    (["--batch-size", "64"], "32 identities"),
    (["--backbone", "resnet19"], "resnet19"),
    (["--backbone-params", "nowhere.params"], "nowhere.params"),
    (["--test-txt", "LIST"], "--train-txt"),
    (["--dataset", "lists", "--train-txt", "ONE", "--test-txt", "LIST"], "the only training image of its class"),
    (["--dataset", "sop"], "data/Stanford_Online_Products: no such folder"),
    (["--output-dir", "/proc/run"], "/proc/run"),
    (["--output-dir", "README.md"], "README.md"),
    (["--gpu", "7"], "--gpu 7"),
    (["--save-every", "-1"], "--save-every"),
    (["--micro-batch", "1"], "--micro-batch: expected a whole number from 2, found '1'"),
]


# Runs commands, as `here`, in a process that cannot import MXNet; prints for each [exit code, last line, its output].
WITHOUT_MXNET = """
import contextlib, io, json, runpy, sys
from cgd.system import errors

sys.modules["mxnet"] = None
endings = []
errors.leave = lambda code, text="": endings.append([code, text])
for words in json.loads(sys.argv[1]):
    sys.argv = words
    with contextlib.redirect_stdout(io.StringIO()) as output:
        runpy.run_path(words[0], run_name="__main__")
    endings[-1].append(output.getvalue())
print(json.dumps(endings))
"""

# Each command of the project, with the arguments that it requires.
COMMANDS = {
    "train.py": [],
    "test.py": ["--pretrained-model", "nowhere/net"],
    "cgd/quantize.py": ["nowhere/net", "-o", "OUTPUT"],
    "cgd/export.py": ["nowhere/net", "OUTPUT.onnx"],
    "cgd/explain.py": ["nowhere/net", "a.jpg", "b.jpg", "-o", "OUTPUT.png"],
    "cgd/describe.py": ["nowhere/net", "photos", "-o", "OUTPUT"],
    "cgd/search.py": ["nowhere", "a.jpg"],
    "cgd/gallery/sheet.py": ["nowhere.npz", "OUTPUT.png"],
    "cgd/training/curves.py": ["nowhere"],
    "cgd/tables/__main__.py": [],
    "cgd/demo.py": [],
}
NO_CHECKPOINT = "nowhere/net-symbol.json: no such file"
WRONG_VALUES = [
    *[
        (name, COMMANDS[name], NO_CHECKPOINT)
        for name in ("test.py", "cgd/quantize.py", "cgd/export.py", "cgd/explain.py")
    ],
    ("train.py", ["--pretrained-model", "nowhere/net"], NO_CHECKPOINT),
    ("train.py", ["--iterations", "many"], "--iterations many"),
    ("train.py", ["--config", "MX"], "'MX'"),
    ("train.py", ["--batch-size", "7"], "--batch-size 7"),
    ("train.py", ["--kvstore", "dist"], "'dist'"),
    ("train.py", ["--resume", "nowhere"], "--resume nowhere"),
]


def test_help_and_wrong_flags_do_not_need_mxnet(tmp_path):
    """Importing it takes far longer than all the rest."""
    wrong = [(name, [*words, "--what"], "--what") for name, words in COMMANDS.items() if name != "cgd/demo.py"]
    wrong += WRONG_VALUES  # demo.py passes what it does not know to train.py
    calls = [[name, "--help"] for name in COMMANDS]
    output = str(tmp_path / "folder" / "new")
    calls += [[name, *(word.replace("OUTPUT", output) for word in words)] for name, words, _ in wrong]
    result = command("-c", WITHOUT_MXNET, json.dumps(calls))
    assert result.returncode == 0, result.stderr
    endings = json.loads(result.stdout)
    for name, (code, line, output) in zip(COMMANDS, endings):
        assert (code, line) == (0, "") and output.startswith("usage: "), (name, line)
    for (name, words, told), (code, line, _) in zip(wrong, endings[len(COMMANDS) :]):
        assert code == 2 and line.startswith("error: ") and told in line, (name, words, line)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words, told", BAD_TRAININGS, ids=lambda value: str(value)[:30])
def test_bad_input_to_train_is_one_line_and_code_2(small_demo, tmp_path, words, told, here):
    scratch = [] if "--backbone-params" in words else ["--from-scratch"]
    output = ["--output-dir", tmp_path / "run", *SMALL, *scratch]
    dataset = datasets.load("demo", small_demo)
    lists = {
        "LIST": write_list(tmp_path / "list.txt", dataset.test, small_demo),
        "ONE": write_list(tmp_path / "one.txt", dataset.train[:7], small_demo),
    }
    folder = [] if "sop" in words else ["--data-dir", small_demo]
    words = [lists.get(word, word) for word in words]
    result = here("train.py", "--dataset", "demo", *folder, *output, *words)
    assert_one_line(result, told)
    assert not (tmp_path / "run").exists()


def test_a_run_is_never_written_over(run, small_demo, here):
    before = sorted((file.name, file.stat().st_mtime_ns) for file in run[0].iterdir())
    result = here(
        *["train.py", "--dataset", "demo", "--data-dir", small_demo, "--from-scratch", "--output-dir", run[0], *SMALL]
    )
    assert result.returncode == 2 and "holds a run; choose another folder" in result.stderr
    assert before == sorted((file.name, file.stat().st_mtime_ns) for file in run[0].iterdir())


@pytest.mark.parametrize("name", ["state.npz", "last-0000.params", "best.json"])
def test_a_folder_with_parts_of_a_run_is_left_alone(run, small_demo, tmp_path, here, name):
    """A state would be resumed after a kill; a checkpoint may be the one to fine-tune."""
    shutil.copy(str(run[0] / name), str(tmp_path))
    words = ["--dataset", "demo", "--data-dir", small_demo, "--from-scratch", "--output-dir", tmp_path, *SMALL]
    result = here("train.py", *words)
    assert_one_line(result, f"--output-dir {tmp_path}: holds {name} of another run; choose another folder")
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_a_page_that_cannot_be_written_costs_nothing_else(run, small_demo, tmp_path, here, monkeypatch):
    def fail(*_):
        raise InputError("no room for the page")

    monkeypatch.setattr(gallery_report, "write", fail)
    files = {"--results": "r.json", "--save-embeddings": "e.npz", "--html": "p.html"}
    more = [word for flag, name in files.items() for word in (flag, tmp_path / name)]
    result = here(*evaluation(run, small_demo, *more, "--confidence"))
    assert result.returncode == 2 and "no room for the page" in result.stderr
    assert "95 %" in result.stdout and {"r.json", "e.npz"} == {file.name for file in tmp_path.iterdir()}


@pytest.mark.parametrize("what", ["nothing", "half", "text", "another archive"])
def test_a_picture_of_neighbours_of_no_embeddings_is_told(tmp_path, what, here):
    file = tmp_path / "e.npz"
    np.savez(str(file), embeddings=np.zeros((3, 2)))
    content = {"nothing": b"", "half": file.read_bytes()[:100], "text": b"hello", "another archive": file.read_bytes()}
    file.write_bytes(content[what])
    result = here("-m", "cgd.gallery.sheet", file, tmp_path / "n.png")
    assert_one_line(result, "e.npz: not a file written by test.py")


def test_the_demo_passes_on_what_test_takes_too(monkeypatch, tmp_path, capsys):
    """The device, the workers and the folder; what train.py alone takes goes to train.py. And its table."""
    called = []
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    (tmp_path / "runs" / "demo-1").mkdir(parents=True)
    monkeypatch.setattr(demo, "command", lambda *words: called.append(" ".join(map(str, words))))
    monkeypatch.setattr(demo, "draw_demo", lambda folder, progress: called.append(f"draw {folder}"))
    monkeypatch.setattr(demo, "recalls", lambda _, name: {"1": {"before": 0.1, "after": 0.2, "uncropped": 0.3}[name]})
    words = ["--gpus", "2,1", "--num-workers", "0", "--data-dir", str(tmp_path), "--iterations", "9"]
    monkeypatch.setattr(sys, "argv", ["demo", *words])
    with pytest.raises(InputError, match="has no train.py; run this in a clone"):
        demo.main()
    (tmp_path / "train.py").touch()
    demo.main()
    both, folder = f"--data-dir {tmp_path} --num-workers 0", "runs/demo-2"
    train = f"train.py --dataset demo --from-scratch {both} --gpus 2,1 --iterations 9"
    test = f"test.py --pretrained-model {folder}/{{}}/last --results {folder}/{{}}.json {both} --gpu 2"
    assert called == [
        f"draw {tmp_path}",
        f"{train} --iterations 0 --output-dir {folder}/untrained",
        f"{train} --output-dir {folder}/trained",
        test.format("untrained", "before"),
        test.format("trained", "after") + f" --save-embeddings {folder}/after.npz",
        test.format("trained", "uncropped") + " --uncropped",
        f"-m cgd.gallery.sheet {folder}/after.npz {folder}/neighbours.png",
    ]
    *_, titles, row = capsys.readouterr().out.partition("\n\nTotal time")[0].splitlines()
    assert re.split("  +", titles.strip()) == ["before training", "after training", "after, uncropped"]
    assert row.split() == ["R@", "1:", "0.1000", "0.2000", "0.3000"]


def test_the_demo_ends_as_a_command_that_fails(capfd):
    with pytest.raises(SystemExit) as end:
        demo.command("-c", "raise SystemExit(7)")
    assert end.value.code == 7 and capfd.readouterr().out == "\n$ python -c raise SystemExit(7)\n"
