"""cgd.load, cgd.describe and cgd.search: from pictures to their neighbours."""

import json
import os
import random
import re
import shutil
import signal
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cgd
from cgd.data import images
from cgd.data.pictures import Picture
from cgd.describe import share
from cgd.gallery import page
from cgd.network import checkpoints, descriptions
from cgd.retrieval import index
from cgd.system.environment import mx
from cgd.system.errors import InputError
from conftest import LONG, ROOT, command, lively_network, needs_bfloat16

SIDE = 32
COUNT = 11  # pictures, in two folders; a batch of 4 is filled twice and a half


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    """A small checkpoint whose descriptors differ by picture."""
    prefix = tmp_path_factory.mktemp("network") / "net"
    described = {"image_width": SIDE, "image_height": SIDE, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}
    checkpoints.save(lively_network("mobilenet0.25", SIDE), str(prefix), dict(described, cropped=False))
    return prefix


@pytest.fixture
def photos(tmp_path):
    """Pictures of coloured stripes, of several sizes; a hidden one and a text beside them."""
    noise = np.random.RandomState(0)
    for number in range(COUNT):
        folder = tmp_path / "photos" / ("thick" if number % 2 else "thin")
        folder.mkdir(parents=True, exist_ok=True)
        stripes = np.arange(40 + number)[:, None, None] // (1 + number % 4) % 2 * noise.randint(0, 255, 3)
        pixels = np.broadcast_to(stripes, (40 + number, 50, 3)) // 2 + noise.randint(0, 99, (40 + number, 50, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(str(folder / f"{number:02d}.png"))
    (tmp_path / "photos" / ".hidden.png").write_text("no picture")
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    return tmp_path / "photos"


@pytest.fixture
def describe(here, prefix):
    """Runs cgd.describe; what it printed."""

    def describe(*words, code=0):
        result = here("-m", "cgd.describe", prefix, *words, "--gpu", -1, "--num-workers", 0, "--batch-size", 4)
        assert result.returncode == code, result.stderr
        return result

    return describe


@pytest.fixture
def search(here):
    def search(*words, code=0):
        result = here("-m", "cgd.search", *words, "--gpu", -1, "--num-workers", 0)
        assert result.returncode == code, result.stderr
        return result

    return search


def all_paths(photos):
    return sorted(str(path) for path in photos.glob("*/*.png"))


def by_hand(prefix, paths):
    """Float64 descriptors of whole pictures: each alone, through the checkpoint's own graph as MXNet runs it."""
    checkpoint = checkpoints.Checkpoint(prefix)
    net = mx.gluon.SymbolBlock(checkpoint.symbol, mx.sym.var("data"))
    for name, parameter in net.collect_params().items():
        parameter.initialize()
        parameter.set_data(dict(checkpoint.arg_params, **checkpoint.aux_params)[name])
    rows = []
    for path in paths:
        picture = images.resize(images.read_image(path), (SIDE, SIDE)).asnumpy() / 255
        x = (picture - checkpoint.description["mean"]) / checkpoint.description["std"]
        rows.append(net(mx.nd.array(x.transpose(2, 0, 1)[None])).asnumpy()[0].astype(np.float64))
    return np.array(rows)


def test_importing_cgd_is_free_and_its_names_are_there():
    script = "import sys, cgd; assert 'mxnet' not in sys.modules and 'numpy' not in sys.modules; print(*cgd.__all__)"
    result = command("-c", script)
    assert result.returncode == 0, result.stderr
    names = result.stdout.split()
    assert sorted(names) == ["CGD", "InputError", "load", "load_dataset", "nearest", "recall_at_k"]
    assert all(getattr(cgd, name).__doc__ for name in names) and set(names) <= set(dir(cgd))
    with pytest.raises(AttributeError, match="no attribute 'recall'"):
        cgd.recall  # noqa: B018


def test_a_loaded_network_describes_paths_and_arrays_alike(prefix, photos):
    model, paths = cgd.load(prefix, gpu=-1, batch_size=4), all_paths(photos)
    expected = by_hand(prefix, paths)
    assert np.ptp(expected, axis=0).max() > 0.05  # the descriptors differ, so an order that was mixed up is noticed
    found = model.describe(paths)
    assert found.dtype == np.float32 and np.abs(found - expected).max() < 1e-5
    arrays = [np.asarray(Image.open(path)) for path in paths]
    assert np.abs(model.describe(arrays[:3] + paths[3:5]) - expected[:5]).max() < 1e-5  # another number of pictures
    assert np.abs(model.describe(paths[:1]) - expected[:1]).max() < 1e-5
    assert model.describe([]).shape == (0, model.dim)


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        (["none.jpg"], cgd.InputError, "none.jpg: No such file"),
        (
            [np.zeros((3, 4, 4), np.uint8)],
            ValueError,
            r"expected \(H, W, 3\) uint8 arrays or paths, found uint8 \(3, 4",
        ),
        ([np.zeros((4, 4, 3))], ValueError, "found float64"),
        (np.zeros((4, 4, 3), np.uint8), ValueError, "expected"),  # one picture, not a list
        ("a.jpg", ValueError, r"expected a list of pictures, as in \['a.jpg'\]"),
    ],
)
def test_what_cannot_be_described(prefix, wrong, error, message):
    with pytest.raises(error, match=message):
        cgd.load(prefix, gpu=-1).describe(wrong)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"dtype": "float16"}, "--dtype float16: expected one of float32, bfloat16"),
        ({"dtype": "int8"}, "--dtype int8: expected"),  # which a checkpoint is or is not
        ({"runtime": "MXNet"}, "--runtime MXNet: expected one of mxnet, onnx"),
        ({"batch_size": 0}, "batch_size 0: expected 1 or more"),
        ({"batch_size": 2.5}, "batch_size 2.5: expected whole numbers"),
        ({"gpu": "0"}, "gpu '0', batch_size 32: expected whole numbers"),
    ],
)
def test_how_a_network_cannot_be_loaded(prefix, options, message):
    with pytest.raises(cgd.InputError, match=message):
        cgd.load(prefix, **{"gpu": -1, **options})


def test_descriptors_that_are_not_finite_are_told(prefix, photos):
    model = cgd.load(prefix, gpu=-1)
    model.embed = lambda x: mx.nd.full((len(x), model.dim), float("nan"))
    with pytest.raises(cgd.InputError, match="not finite"):
        model.describe(all_paths(photos)[:2])


def test_a_description_without_dim_has_that_of_the_graph(prefix, photos, here, tmp_path):
    copies = [shutil.copy(str(prefix) + ending, tmp_path) for ending in ("-symbol.json", "-0000.params", ".json")]
    known = json.loads(Path(copies[2]).read_text())
    dim = known.pop("dim")
    Path(copies[2]).write_text(json.dumps(known))
    name = str(tmp_path / Path(prefix).name)
    assert descriptions.read(name)["dim"] != dim == cgd.load(name, gpu=-1).dim
    result = here("-m", "cgd.describe", name, photos, "-o", tmp_path / "i", "--gpu", -1, "--num-workers", 0)
    assert result.returncode == 0 and index.read(tmp_path / "i")[0]["dim"] == dim


def test_an_index_holds_the_descriptors_of_a_folder(prefix, photos, describe, tmp_path):
    result = describe(photos, "-o", tmp_path / "i", "--class-folders")
    assert f"{COUNT} pictures described; {tmp_path / 'i'} holds {COUNT}" in result.stdout
    assert "ignored 1 files" in result.stderr and "notes.txt" in result.stderr
    facts, items, vectors = index.read(tmp_path / "i")
    paths = [os.path.join(facts["folder"], item.path) for item in items]
    assert paths == all_paths(photos)
    assert np.abs(vectors - by_hand(prefix, paths)).max() < 1e-5
    assert [item.label for item in items] == [os.path.basename(os.path.dirname(path)) for path in paths]
    assert "labels" not in describe(photos, "-o", tmp_path / "i", "--class-folders").stderr
    assert "had labels, which are dropped; --class-folders" in describe(photos, "-o", tmp_path / "i").stderr


def test_only_what_changed_is_described_again(prefix, photos, describe, tmp_path):
    describe(photos, "-o", tmp_path / "i")
    first, *_, last = all_paths(photos)
    os.unlink(first)
    shutil.copy(all_paths(photos)[0], last)
    shutil.copy(last, str(photos / "thin" / "new.png"))
    (photos / "thin" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    result = describe(photos, "-o", tmp_path / "i")
    told = f"2 pictures described, 1 skipped as unreadable, 1 dropped; {tmp_path / 'i'} holds {COUNT}"
    assert told in result.stdout
    assert "skipped: " in result.stderr and "broken.png: corrupt PNG file" in result.stderr
    facts, items, vectors = index.read(tmp_path / "i")
    paths = [os.path.join(facts["folder"], item.path) for item in items]
    assert paths == [path for path in all_paths(photos) if "broken" not in path]
    assert np.abs(vectors - by_hand(prefix, paths)).max() < 1e-5


def test_shards_make_the_same_index(photos, describe, tmp_path):
    """Each begins without what the others have described, as several machines do."""
    describe(photos, "-o", tmp_path / "one")
    one, shares = index.read(tmp_path / "one"), []
    for number in (1, 2):
        told = describe(photos, "-o", tmp_path / str(number), "--shard", f"{number}/2").stdout
        part = tmp_path / str(number) / index.PARTS / f"{number}-of-2.jsonl"
        shares.append([json.loads(line)["path"] for line in part.read_text().splitlines()[1:]])
        assert told == f"share {number} of 2: {len(shares[-1])} pictures described\n"
        assert [zlib.crc32(path.encode()) % 2 for path in shares[-1]] == [number - 1] * len(shares[-1])
        shutil.copytree(str(part.parent), str(tmp_path / "i" / index.PARTS), dirs_exist_ok=True)
    assert sorted(sum(shares, [])) == [item.path for item in one[1]]
    assert "0 pictures described" in describe(photos, "-o", tmp_path / "i").stdout
    other = index.read(tmp_path / "i")
    assert list(one[1]) == list(other[1]) and np.abs(one[2] - other[2]).max() < 1e-6


def test_shares_are_of_about_the_same_size():
    found = [Picture(f"birds/{number:03d}.jpg", 1, 1, None, None) for number in range(300)]
    shares = [share(found, (number, 4)) for number in range(1, 5)]
    assert sorted(sum(shares, [])) == found and all(50 < len(each) < 100 for each in shares)


def test_lists_with_boxes_and_lists_of_paths(prefix, photos, describe, tmp_path):
    paths = all_paths(photos)[:3]
    names = [os.path.relpath(path, str(photos)) for path in paths]
    (tmp_path / "list.txt").write_text("\n".join(names) + "\n")
    describe(tmp_path / "list.txt", "--data-dir", photos, "-o", tmp_path / "plain")
    _, items, vectors = index.read(tmp_path / "plain")
    assert [item.path for item in items] == names
    assert np.abs(vectors - by_hand(prefix, paths)).max() < 1e-5
    rows = [f"{number} {7 + number} {name}" for number, name in enumerate(names, 1)]
    (tmp_path / "list.txt").write_text("\n".join(["image_id class_id path", *rows]))
    (tmp_path / "boxes.txt").write_text("1 5 6 20 30\n2 0 0 9 9\n3 1 1 500 500\n")
    boxes = ["--bbox-txt", tmp_path / "boxes.txt"]
    describe(tmp_path / "list.txt", "--data-dir", photos, *boxes, "-o", tmp_path / "cropped")
    _, items, vectors = index.read(tmp_path / "cropped")
    assert [(item.crop, item.label) for item in items] == [
        ((5, 6, 20, 30), "8"),
        ((0, 0, 9, 9), "9"),
        ((1, 1, 500, 500), "10"),
    ]
    Image.open(paths[0]).crop((5, 6, 25, 36)).save(str(tmp_path / "crop.png"))
    assert np.abs(vectors[0] - by_hand(prefix, [str(tmp_path / "crop.png")])[0]).max() < 1e-5


# cgd.describe, which reads zz.png for ever
STALLS = """
import time
from cgd import describe
from cgd.data import images
from cgd.system import errors
read = images.read_image
images.read_image = lambda path: time.sleep(1e6) if path.endswith("zz.png") else read(path)
errors.run(describe.main)
"""


def test_several_kills_lose_nothing(prefix, photos, tmp_path, start):
    """SIGKILL at random moments while pictures are described; then the index is that of a run in one go.

    KILL_SEED, printed when the test fails, repeats the waits. Reading the last picture takes for ever: nothing ends
    before it is killed.
    """
    seed = int(os.environ.get("KILL_SEED") or random.SystemRandom().randrange(10**6))
    print(f"KILL_SEED={seed}")
    moments = random.Random(seed)
    Image.new("RGB", (9, 9)).save(str(photos / "zz.png"))
    for copy in range(5):
        shutil.copytree(str(photos / "thin"), str(photos / f"copy-{copy}"))
    words = [prefix, photos, "-o", tmp_path / "i", "--gpu", -1, "--batch-size", 1]
    part, kept = tmp_path / "i" / index.PARTS / "1-of-1.jsonl", 1
    for _ in range(8 if LONG else 2):
        process, end = start("-c", STALLS, *words), time.time() + 120
        while time.time() < end and not (part.exists() and lines(part) > kept):
            time.sleep(0.002)
        time.sleep(moments.random() / 100)
        os.killpg(process.pid, signal.SIGKILL)  # one of its processes may stall
        assert process.wait() == -signal.SIGKILL, "it ended before"
        assert lines(part) > kept, "it described nothing, or forgot what it had"
        kept = lines(part) - 1
    os.unlink(photos / "zz.png")
    result = command("-m", "cgd.describe", *words)
    assert result.returncode == 0, result.stderr
    facts, items, vectors = index.read(tmp_path / "i")
    described = int(result.stdout.split()[0])
    assert described <= len(items) - kept + 1 and len(items) == len(all_paths(photos))
    paths = [os.path.join(facts["folder"], item.path) for item in items]
    assert np.abs(vectors - cgd.load(prefix, gpu=-1).describe(paths)).max() < 1e-5


def lines(file):
    return file.read_bytes().count(b"\n")


def neighbours_of(result):
    """{query: [(item, distance, path)]} of what cgd.search printed."""
    found = {}
    for line in result.stdout.splitlines():
        if line.startswith("/"):
            query = found.setdefault(line, [])
        else:
            _, distance, item, path = line.split(maxsplit=3)
            query.append((int(item), float(distance), path))
    return found


def test_search_finds_the_nearest(prefix, photos, describe, search, tmp_path):
    describe(photos, "-o", tmp_path / "i")
    paths = all_paths(photos)
    vectors = by_hand(prefix, paths)
    found = neighbours_of(search(tmp_path / "i", paths[7], "-k", 3, photos / "thick"))
    assert list(found) == [paths[7], *all_paths(photos)[: COUNT // 2]]
    for query, neighbours in found.items():
        distances = np.linalg.norm(vectors - vectors[paths.index(query)], axis=1)
        nearest = np.argsort(distances)[:3]
        assert [(item, path) for item, _, path in neighbours] == [(item, paths[item]) for item in nearest]
        assert np.abs([far for _, far, _ in neighbours] - distances[nearest]).max() < 1e-3  # near 0, float32 shows


def test_search_for_a_picture_of_the_index_leaves_itself_out(photos, describe, search, tmp_path):
    shutil.copy(all_paths(photos)[0], str(photos / "thick" / "00-copy.png"))
    shutil.copy(all_paths(photos)[0], str(photos / "thick" / "00-copy-2.png"))
    describe(photos, "-o", tmp_path / "i")
    paths = all_paths(photos)
    result = search(tmp_path / "i", "--like", 2, "--like", 0, "-k", 2, "--json")
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["query"] for line in found] == [paths[2], paths[0]]
    assert [[n["item"] for n in line["neighbours"]] for line in found] == [[0, 1], [1, 2]]
    assert found[0]["neighbours"][0] == {"item": 0, "distance": 0.0, "path": paths[0], "label": None}
    assert (
        len(search(tmp_path / "i", "--like", 5, "-k", 99).stdout.splitlines()) == COUNT + 2
    )  # the query, and all others


def page_data(file):
    """What the script of a page shows."""
    text = file.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json"[^>]*>(.*?)</script>', text, re.DOTALL).group(1))


def test_a_page_of_what_is_found(prefix, photos, describe, search, tmp_path):
    describe(photos, "-o", tmp_path / "i", "--class-folders")
    printed = search(tmp_path / "i", "--like", 1, "-k", 3, "--json", "--html", tmp_path / "page.html")
    found = json.loads(printed.stdout)["neighbours"]
    data = page_data(tmp_path / "page.html")
    (row,) = data["rows"]
    names = [picture[0] for picture in data["pictures"]]
    assert [names[item] for item in row["items"]] == [os.path.relpath(n["path"], str(photos)) for n in found]
    assert row["distances"] == [round(n["distance"], 6) for n in found]
    assert [each[0] for each in row["maps"][0]] == ["all", "S", "M", "G"]
    assert data["scatter"] is None  # with a single query
    os.rename(str(tmp_path / "i" / "index.json"), str(tmp_path / "old.json"))
    facts = json.loads((tmp_path / "old.json").read_text())
    (tmp_path / "i" / "index.json").write_text(json.dumps(dict(facts, name="/moved/net")))
    result = search(tmp_path / "i", "--like", 1, "--html", tmp_path / "page.html")
    assert "no similarity maps: /moved/net" in result.stderr and not page_data(tmp_path / "page.html")["rows"][0].get(
        "maps"
    )


def test_a_page_has_the_first_of_many_queries(photos, describe, search, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "MOST_QUERIES", 2)
    describe(photos, "-o", tmp_path / "i")
    printed = search(tmp_path / "i", photos / "thin", "-k", 3, "--html", tmp_path / "page.html")
    data, found = page_data(tmp_path / "page.html"), neighbours_of(printed)
    assert len(found) == COUNT - COUNT // 2 and data["note"] == f"The first 2 of {len(found)} queries."
    assert [row["distances"] for row in data["rows"]] == [
        pytest.approx([far for _, far, _ in neighbours], abs=1e-4) for neighbours in list(found.values())[:2]
    ]


@needs_bfloat16
def test_queries_have_the_precision_of_the_index(photos, describe, search, tmp_path):
    """A picture finds itself: its descriptors in float32 and bfloat16 are far apart in this network."""
    describe(photos, "-o", tmp_path / "i", "--dtype", "bfloat16")
    (neighbours,) = neighbours_of(search(tmp_path / "i", all_paths(photos)[3], "-k", 1)).values()
    assert neighbours[0][0] == 3 and neighbours[0][1] < 0.01


def test_one_picture_has_nothing_to_be_compared_with(photos, describe, search, tmp_path):
    for path in all_paths(photos)[1:]:
        os.unlink(path)
    describe(photos, "-o", tmp_path / "i")
    assert "has one picture only" in search(tmp_path / "i", "--like", 0, code=2).stderr


def test_export_for_other_engines(photos, describe, search, tmp_path):
    describe(photos, "-o", tmp_path / "i", "--stored", "float16")
    search(tmp_path / "i", "--export", tmp_path / "a.npy")
    exported = np.load(str(tmp_path / "a.npy"))
    assert exported.dtype == np.float32 and np.array_equal(exported, index.read(tmp_path / "i")[2].astype(np.float32))


def test_an_index_in_faiss_finds_the_same(photos, describe, search, tmp_path):
    faiss = pytest.importorskip("faiss", reason="no faiss here: pip install faiss-cpu, or make test-peers")
    describe(photos, "-o", tmp_path / "i")
    search(tmp_path / "i", "--export", tmp_path / "a.faiss")
    vectors = np.array(index.read(tmp_path / "i")[2])
    _, found = faiss.read_index(str(tmp_path / "a.faiss")).search(vectors, 5)
    assert np.array_equal(
        found, np.argsort(-(vectors.astype(np.float64) @ vectors.T.astype(np.float64)), axis=1)[:, :5]
    )


@pytest.mark.parametrize("engine, package", [("faiss_flat", "faiss"), ("qdrant", "qdrant_client")])
def test_other_engines_find_the_same(engine, package, monkeypatch):
    pytest.importorskip(package, reason=f"no {package} here: make test-peers installs it")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import engines

    vectors = np.random.RandomState(0).standard_normal((300, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    search, _ = getattr(engines, engine)(vectors)
    found = engines.others(search(vectors[:20], 6), range(20), 5)
    closeness = vectors[:20].astype(np.float64) @ vectors.T.astype(np.float64)
    assert np.array_equal(found, np.argsort(-closeness, axis=1)[:, 1:6])


def test_search_without_the_network_or_with_another(prefix, photos, describe, search, tmp_path):
    for ending in ("-symbol.json", "-0000.params", ".json"):
        shutil.copy(f"{prefix}{ending}", str(tmp_path / f"net{ending}"))
    describe(photos, "-o", tmp_path / "i")
    facts = json.loads((tmp_path / "i" / "index.json").read_text())
    (tmp_path / "i" / "index.json").write_text(json.dumps(dict(facts, name="/moved/net")))
    query = all_paths(photos)[0]
    assert "give its new place by --pretrained-model" in search(tmp_path / "i", query, code=2).stderr
    search(tmp_path / "i", query, "--pretrained-model", tmp_path / "net")
    with open(str(tmp_path / "net-0000.params"), "ab") as file:
        file.write(b"x")
    wrong = search(tmp_path / "i", query, "--pretrained-model", tmp_path / "net", code=2)
    assert "is not the network that described" in wrong.stderr
    shutil.move(str(photos), str(tmp_path / "moved"))
    assert "describe them again at their new place" in search(tmp_path / "i", "--like", 0).stderr


@pytest.mark.parametrize(
    "words, message",
    [
        (["QUERY", "--like", 1], "either pictures, or --like, or --export"),
        ([], "either pictures, or --like, or --export"),
        (["nothing.jpg"], "nothing.jpg: no such file"),
        (["--like", 99], "--like 99: .* has the pictures 0 to 10"),
        (["--export", "a.txt"], "expected a name that ends with .npy or .faiss"),
        (["--export", "INDEX/vectors.npy"], "vectors.npy: is a file that this command reads"),
        (["--export", "a.npy", "--html", "a.html"], "--export: writes descriptors and searches nothing"),
        (["--html", "notes.txt", "QUERY"], "--html .*notes.txt: expected a name that ends with .html"),
        (["notes.txt"], "none of the 1 queries could be read"),
    ],
)
def test_bad_searches_are_one_line(photos, describe, search, tmp_path, words, message):
    describe(photos, "-o", tmp_path / "i")
    words = [str(photos / word) if word == "notes.txt" else word for word in words]
    words = [word.replace("INDEX", str(tmp_path / "i")) if isinstance(word, str) else word for word in words]
    result = search(tmp_path / "i", *words, code=2)
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and re.search(message, last), result.stderr


@pytest.mark.parametrize(
    "words, message",
    [
        (["nowhere"], "nowhere: no such file"),
        (["photos/thin/00.png"], "00.png: is a picture; expected a folder of pictures, or a list"),
        (["list.txt"], "gone.png': No such file or directory; paths in a list are relative to its folder"),
        (["photos", "--shard", "0/2"], "expected I/N with I from 1 to N"),
        (["photos", "--bbox-txt", "b.txt"], "are for lists"),
        (["photos/thin", "-o", "photos"], "is no index, and not empty"),
        (["photos", "--dtype", "float64"], "invalid choice"),
    ],
)
def test_bad_descriptions_are_one_line(photos, describe, tmp_path, words, message):
    (tmp_path / "list.txt").write_text("gone.png\n")
    words = [str(tmp_path / word) if word.startswith(("photos", "nowhere", "list")) else word for word in words]
    result = describe(*words, *([] if "-o" in words else ["-o", tmp_path / "i"]), code=2)
    assert message in result.stderr.strip().splitlines()[-1]


def test_a_query_is_cropped_as_it_was_when_it_was_described(photos, describe, search, tmp_path):
    """With --box it finds itself, also in an index that is rounded to float16."""
    first = all_paths(photos)[0]
    lines = [
        f"{number} 0 photos/{os.path.relpath(path, photos)}" for number, path in enumerate(all_paths(photos)[:2], 1)
    ]
    (tmp_path / "list.txt").write_text("\n".join(["image_id class_id path", *lines]))
    (tmp_path / "boxes.txt").write_text("1 5 6 20 18\n2 0 0 30 30\n")
    words = ["--bbox-txt", tmp_path / "boxes.txt", "-o", tmp_path / "i", "--stored", "float16"]
    describe(tmp_path / "list.txt", *words)
    found = [search(tmp_path / "i", first, "-k", 1, *box).stdout.split()[-3:] for box in (["--box", "5,6,20,18"], [])]
    assert found[0] == ["0.0000", "0", first] and float(found[1][0]) > 0.001
    told = search(tmp_path / "i", first, "--box", "1,2,3,4", "--box", "1,2,3,4", code=2).stderr
    assert "--box: 2 given for 1 queries; expected one for each picture" in told


def test_vectors_of_another_length_are_not_stored(tmp_path):
    facts = dict.fromkeys(index.SAME, "x")
    facts.update(dim=12, stored="float32")
    (tmp_path / "i" / "parts").mkdir(parents=True)
    part = index.Part(tmp_path / "i" / "parts" / "0", facts)
    with pytest.raises(InputError, match="the network gives 4 dimensions, but its description says 12"):
        part.append([], np.zeros((9, 4), np.float32))


def test_a_damaged_index_is_told(photos, describe, search, tmp_path):
    """The advice to run the same command again would not help."""
    describe(photos, "-o", tmp_path / "i")
    items = tmp_path / "i" / index.ITEMS
    items.write_bytes(items.read_bytes().split(b"\n", 1)[1])
    assert "it is damaged: describe the pictures again" in search(tmp_path / "i", photos, code=2).stderr
    assert "it is damaged: describe the pictures again" in describe(photos, "-o", tmp_path / "i", code=2).stderr


def test_damage_within_an_index_is_one_line(photos, describe, search, tmp_path):
    describe(photos, "-o", tmp_path / "i")
    file = tmp_path / "i" / index.ITEMS
    lines = file.read_bytes().split(b"\n")
    for broken in (b'{"path": ', b"\0\0\0\0", b"{}"):
        file.write_bytes(b"\n".join([lines[0], broken, *lines[2:]]))
        assert "items.jsonl:2: cannot be read" in search(tmp_path / "i", "--like", 1, code=2).stderr
    file.write_bytes(b"\n".join(lines))
    vectors = np.load(str(tmp_path / "i" / index.VECTORS))
    vectors[1] = np.nan
    np.save(str(tmp_path / "i" / index.VECTORS), vectors)
    assert "is not finite in float32; it is damaged" in search(tmp_path / "i", "--like", 0, code=2).stderr
