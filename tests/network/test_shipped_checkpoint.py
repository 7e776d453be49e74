"""The checkpoint of this repository: its archive unpacks to a network that gives the figures of its card."""

import json
import re
import tarfile

import numpy as np
import pytest

import cgd
from conftest import LONG, ROOT

NAME = "CGD.CUB200.C_concat_MG.MobileNetV2.dim1536"
ARCHIVE = ROOT / "checkpoints" / f"{NAME}.tar.gz"


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    """Where it was unpacked to, as README does."""
    folder = tmp_path_factory.mktemp("checkpoints")
    with tarfile.open(str(ARCHIVE)) as archive:
        names = sorted(archive.getnames())
        assert names == sorted(NAME + ending for ending in ("-symbol.json", "-0000.params", ".json"))
        archive.extractall(str(folder))
    return folder / NAME


def figures_of_the_card():
    """R@1, 2, 4 and 8 in checkpoints/README.md."""
    section = (ROOT / "checkpoints" / "README.md").read_text().split("## A network trained here")[1].split("\n## ")[0]
    printed = re.findall(r"^R@ +(\d): (0\.\d{4})$", section, re.MULTILINE)
    return {int(k): float(recall) for k, recall in printed}


def test_it_is_small_and_says_how_it_is_used(prefix):
    assert ARCHIVE.stat().st_size < 17e6
    description = json.loads(prefix.with_name(NAME + ".json").read_text())
    assert (description["dataset"], description["cropped"], description["config"]) == ("cub200", True, "MG")
    assert {int(k): round(recall, 4) for k, recall in description["recall"].items()} == figures_of_the_card()


def test_it_describes_pictures(prefix, records):
    vectors = cgd.load(str(prefix)).describe([record.path for record in records])
    assert vectors.shape == (len(records), 1536)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


FIRST = {1: 0.6618, 2: 0.7811, 4: 0.8858, 8: 0.9519}  # of the first 20 classes of the test split, 1,165 images


@pytest.mark.parametrize("classes", [20] + ([100] if LONG else []))
def test_it_has_the_recall_of_its_card(prefix, shared, here, tmp_path, classes):
    """On re-encoded crops. Other processors round differently, and exchange a neighbour or two."""
    crops = shared / "data" / "cub200_crops"
    if not crops.is_dir():
        pytest.skip("no crops of CUB-200-2011 in ../shared")
    head, *rows = (crops / "test.txt").read_text().splitlines()
    rows = [row for row in rows if int(row.split()[1]) < classes]
    (tmp_path / "test.txt").write_text("\n".join([head, *rows]))
    lists = ["--dataset", "lists", "--data-dir", crops, "--test-txt", tmp_path / "test.txt", "--uncropped"]
    result = here("test.py", "--pretrained-model", prefix, *lists, "--gpu", -1, "--num-workers", 1)
    assert result.returncode == 0, result.stderr
    found = {int(k): float(recall) for k, recall in re.findall(r"^R@ +(\d): (0\.\d{4})$", result.stdout, re.MULTILINE)}
    expected = figures_of_the_card() if classes == 100 else FIRST
    assert found.keys() == expected.keys()
    for k, recall in expected.items():
        assert abs(found[k] - recall) < 3.1 / len(rows), (k, found[k], recall)
