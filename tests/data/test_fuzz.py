"""Mangled input files: each is read, and then nothing but what stands in it, or it is an InputError.

The oracles are plain regular expressions, line by line, that know nothing of the readers. `make test-long` has 12,930
files, `make test` the first fifth of each kind.
"""

import json
import re
from random import Random

import pytest

from cgd.data import annotations, datasets
from cgd.network import checkpoints, descriptions
from cgd.system.environment import mx
from cgd.system.errors import InputError
from conftest import BOXES, LIST, LONG, annotations_file

pytest.importorskip("hypothesis", reason="no hypothesis here: pip install -r requirements-test.txt")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

# What a careless tool, a broken disk or a joker writes in the place of a word.
WORDS = (
    """0 -1 1 2 3 7 99999999999999999999 1.5 1e3 nan inf 0x1F 1_0 \u00b2 \u0661 None null ../a.jpg /etc/passwd a/../../b
    . .. train query gallery image_id class_id path view_id [] {} "" " -""".split()
    + ["", " ", "\t", "\n", "\r\n", "\0", "\ufeff"]
)

KINDS = ["byte", "cut", "insert", "end", "line twice", "line away", "lines swapped", "word"]


def edits_of(seed):
    """1 to 4 edits: what is done, where, and with which bytes. By a number, for hypothesis is slow at so many draws."""
    random = Random(seed)
    return [(random.choice(KINDS), random.random(), bytes_of(random)) for _ in range(random.randint(1, 4))]


def bytes_of(random):
    if random.random() < 0.5:
        return random.choice(WORDS).encode()
    return bytes(random.choices(range(256), k=random.randint(1, 4)))


EDITS = st.integers(0, 2**64 - 1).map(edits_of)


def mangled(data, edits):
    """The bytes after these edits, each at a place from 0 (the beginning) to 1 (the end)."""
    for kind, place, more in edits:
        at = int(place * len(data))
        if kind == "byte":
            data = data[:at] + more[:1] + data[at + 1 :]
        elif kind == "cut":
            data = data[:at] + data[at + len(more) :]
        elif kind == "insert":
            data = data[:at] + more + data[at:]
        elif kind == "end":
            data = data[:at]
        elif kind == "word":
            words = list(re.finditer(rb"[^\s,:\[\]]+", data))
            if words:
                word = words[min(int(place * len(words)), len(words) - 1)]
                data = data[: word.start()] + more + data[word.end() :]
        else:
            data = b"\n".join(_other_lines(data.split(b"\n"), kind, place))
    return data


def _other_lines(lines, kind, place):
    at = min(int(place * len(lines)), len(lines) - 1)
    if kind == "line twice":
        return lines[: at + 1] + lines[at:]
    if kind == "line away":
        return lines[:at] + lines[at + 1 :]
    return lines[:at] + lines[at + 1 : at + 2] + lines[at : at + 1] + lines[at + 2 :]


SHARE = 1 / 5


def fuzz(count):
    """A test of `count` mangled files, or in the short tests of one SHARE of them; the same ones each time."""
    count = count if LONG else round(count * SHARE)
    silent = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    options = settings(max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=silent)
    return lambda test: options(given(edits=EDITS)(test))


def read_or_refused(read, file, data):
    """What `read` makes of a file with these bytes, None where it says in one line what is wrong."""
    file.write_bytes(data)
    try:
        return read(file)
    except InputError as error:
        assert file.name in str(error)
        return None


def lines_of(data):
    """{line number: line} of the lines that are not blank, less a byte order mark."""
    text = data.decode("utf-8")
    lines = re.split("\r\n|\r|\n", text[text.startswith("\ufeff") :])
    return {number: line.strip() for number, line in enumerate(lines, 1) if line.strip()}


@pytest.mark.parametrize("extra", ["", "view_id "])
@fuzz(2000)
def test_lists(tmp_path, extra, edits):
    original = LIST.replace("class_id ", "class_id " + extra).replace(" images", " 7 images" if extra else " images")
    data = mangled(original.encode(), edits)
    rows = read_or_refused(annotations.read_list, tmp_path / "list.txt", data)
    if rows is None:
        return
    header, *lines = lines_of(data).items()
    columns = r"([0-9]+)\s+([0-9]+)\s+" + (r"[0-9]+\s+" if len(header[1].split()) == 4 else "") + r"(.*)"
    expected = [(number, re.fullmatch(columns, line, re.DOTALL).groups()) for number, line in lines]
    assert rows == [(number, int(a), int(b), path) for number, (a, b, path) in expected]
    assert len({row[1] for row in rows}) == len({row[3] for row in rows}) == len(rows)


@fuzz(3000)
def test_boxes(tmp_path, edits):
    data = mangled(BOXES.encode(), edits)
    boxes = read_or_refused(annotations.read_boxes, tmp_path / "bbox.txt", data)
    if boxes is None:
        return
    number = r"\s+([-+]?[0-9]+(?:\.[0-9]*)?)"
    rows = [re.fullmatch(r"([0-9]+)" + number * 4, line).groups() for line in lines_of(data).values()]
    expected = {int(row[0]): tuple(int(float(word)) for word in row[1:]) for row in rows}
    assert boxes == expected and len(boxes) == len(rows)
    assert all(min(box[:2]) >= 0 and min(box[2:]) > 0 for box in boxes.values())


PARTITION = """4
image_name item_id evaluation_status
img/WOMEN/Tees/a.jpg   id_01   train
img/WOMEN/Tees/b.jpg   id_01   train
img/c d.jpg id_02 query
img/e.jpg id_02 gallery
"""


@fuzz(2000)
def test_partitions(tmp_path, edits):
    data = mangled(PARTITION.encode(), edits)
    rows = read_or_refused(annotations.read_partition, tmp_path / "list_eval_partition.txt", data)
    if rows is None:
        return
    (_, count), _, *lines = lines_of(data).items()
    row = r"(.*\S)\s+(\S+)\s+(train|query|gallery)"
    assert rows == [(number, *re.fullmatch(row, line, re.DOTALL).groups()) for number, line in lines]
    assert int(count) == len(rows)


CUB = {
    "images.txt": "".join("{} {:03d}.Bird/{}.jpg\n".format(n, n // 2, n) for n in range(1, 6)),
    "image_class_labels.txt": "".join("{} {}\n".format(n, 99 + n // 2) for n in range(1, 6)),
    "bounding_boxes.txt": "".join("{} {}.0 2.0 30.0 40.0\n".format(n, n) for n in range(1, 6)),
}


@pytest.mark.parametrize("name", CUB)
@fuzz(700)
def test_cubs_three_files(tmp_path, name, edits):
    for other, text in CUB.items():
        (tmp_path / other).write_text(text)
    data = mangled(CUB[name].encode(), edits)
    (tmp_path / name).write_bytes(data)
    try:
        halves = datasets.cub200(tmp_path)
    except InputError as error:
        assert ".txt" in str(error)
        return
    found = {r.image_id: (r.path, r.identity.id, r.box) for half in halves.values() for r in half}
    tables = {other: (tmp_path / other).read_bytes() for other in CUB}
    words = {other: dict(line.split(None, 1) for line in lines_of(table).values()) for other, table in tables.items()}
    words = {other: {int(key): value.split() for key, value in table.items()} for other, table in words.items()}
    assert sorted(found) == sorted(words["images.txt"])
    for key, (path, label, box) in found.items():
        assert path.split() == "{}/images/{}".format(tmp_path, " ".join(words["images.txt"][key])).split()
        assert label == int(words["image_class_labels.txt"][key][0])
        assert list(box) == [int(float(word)) for word in words["bounding_boxes.txt"][key]]
    for half, records in halves.items():
        assert {record.identity.id <= 100 for record in records} <= {half == "train"}


@pytest.fixture(scope="module")
def cars(tmp_path_factory):
    """A MATLAB file of three annotations, its bytes, and its rows."""
    folder = tmp_path_factory.mktemp("cars")
    rows = [("car_ims/{}.jpg".format(n), 10 * n, 2, 300 + n, 200, n) for n in (1, 2, 3)]
    data = annotations_file(folder, rows).read_bytes()
    return folder, data


@fuzz(30)  # each starts a process
def test_matlab_files(cars, edits):
    folder, data = cars
    rows = read_or_refused(
        lambda f: annotations.read_cars(f, "relative_im_path"), folder / "a.mat", mangled(data, edits)
    )
    for number, path, label, (x, y, w, h) in rows or []:
        assert isinstance(path, str) and 1 <= number <= len(rows) and label == int(label)
        assert min(x, y) >= 0 and min(w, h) > 0


@pytest.fixture(scope="module")
def small_checkpoint(tmp_path_factory):
    """A prefix whose three files hold a network of one layer of each kind, and their bytes."""
    prefix = str(tmp_path_factory.mktemp("checkpoint") / "net")
    graph = mx.sym.Convolution(mx.sym.var("data"), num_filter=2, kernel=(3, 3), name="conv")
    graph = mx.sym.Pooling(mx.sym.BatchNorm(graph, name="norm"), global_pool=True, kernel=(6, 6), pool_type="max")
    graph = mx.sym.L2Normalization(mx.sym.FullyConnected(graph, num_hidden=3, name="dense"))
    shapes, _, states = graph.infer_shape(data=(1, 3, 8, 8))
    named = [("arg:" + name, shape) for name, shape in zip(graph.list_arguments(), shapes) if name != "data"]
    named += [("aux:" + name, shape) for name, shape in zip(graph.list_auxiliary_states(), states)]
    graph.save(prefix + "-symbol.json")
    mx.nd.save(prefix + "-0000.params", {name: mx.nd.ones(shape) for name, shape in named})
    description = {"image_width": 8, "image_height": 8, "mean": [0.5, 0.5, 0.5], "config": "M", "cropped": False}
    with open(prefix + ".json", "w") as file:
        json.dump(description, file)
    endings = ("-symbol.json", "-0000.params", ".json")
    return prefix, {ending: open(prefix + ending, "rb").read() for ending in endings}


@pytest.mark.parametrize("ending", ["-symbol.json", "-0000.params", ".json"])
@fuzz(600)
def test_checkpoints(small_checkpoint, ending, edits):
    prefix, files = small_checkpoint
    for other, data in files.items():
        with open(prefix + other, "wb") as file:
            file.write(mangled(data, edits) if other == ending else data)
    try:
        checkpoint = checkpoints.Checkpoint(prefix)
    except InputError as error:
        assert prefix in str(error)
        return
    shapes = {name: value.shape for name, value in checkpoint.arg_params.items()}
    assert shapes["conv_bias"] == (2,) and len(checkpoint.aux_params) == 2
    assert set(checkpoint.description) >= set(descriptions.RELEASED)
