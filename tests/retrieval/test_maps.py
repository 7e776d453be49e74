"""Similarity maps: their sums against the network's own embeddings, their places by hand, and the command."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from cgd import explain
from cgd.network import backbones, checkpoints, heads
from cgd.retrieval import maps
from cgd.system.environment import mx
from cgd.system.errors import InputError
from conftest import LONG, lively_network

PAPER_CONFIGS = ["S", "M", "G", "SM", "MS", "SG", "GS", "MG", "GM", "SMG", "MSG", "GSM"]
WIDTH, HEIGHT = 24, 16


def two_convolutions(last_stride):
    """A backbone of 10 channels whose maxima tie: ReLU6 is often saturated."""
    body = backbones.nn.HybridSequential(prefix=backbones.OTHER_PREFIX)
    with body.name_scope():
        body.add(backbones.nn.Conv2D(8, 3, 2), backbones.nn.BatchNorm(), backbones.nn.Activation("relu"))
        body.add(backbones.nn.Conv2D(10, 3, 2), backbones.nn.BatchNorm(), backbones.nn.HybridLambda(relu6))
    return body


def relu6(F, x):
    return F.clip(x, 0, 6)


def no_convolutions(last_stride):
    """A backbone whose feature map is the image."""
    return backbones.nn.HybridSequential(prefix=backbones.OTHER_PREFIX)


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A function that saves a network on one of these backbones, with biases, and returns its `Checkpoint`."""
    for backbone in (two_convolutions, no_convolutions):
        monkeypatch.setitem(backbones.CUSTOM_BACKBONES, backbone.__name__, backbone)

    def saved(backbone=two_convolutions, **options):
        net = lively_network(backbone.__name__, WIDTH, **options)
        random = np.random.RandomState(0)
        for parameter in net.collect_params(".*dense.*_bias").values():
            parameter.set_data(mx.nd.array(random.uniform(-1, 1, parameter.shape)))
        description = {"image_width": WIDTH, "image_height": HEIGHT, "mean": [0.5] * 3, "std": [0.1] * 3}
        checkpoints.save(net, str(tmp_path / "net"), description)
        return checkpoints.Checkpoint(tmp_path / "net")

    return saved


def pictures(count=2):
    return list(np.random.RandomState(0).randint(0, 256, (count, HEIGHT, WIDTH, 3), dtype=np.uint8))


def own_embeddings(checkpoint, images):
    """Those of the graph as it stands."""
    block = mx.gluon.SymbolBlock(checkpoint.symbol, mx.sym.var("data"))
    for name, parameter in block.collect_params().items():
        parameter._load_init(dict(checkpoint.arg_params, **checkpoint.aux_params)[name], mx.cpu())
    return block(mx.nd.array((np.stack(images).transpose(0, 3, 1, 2) / 255 - 0.5) / 0.1)).asnumpy()


@pytest.mark.parametrize(
    "options",
    [
        *[{"config": config} for config in PAPER_CONFIGS],
        {"fusion": "sum"},
        {"architecture": "A"},
        {"architecture": "B"},
        {"architecture": "B", "fusion": "sum", "config": "MG"},
        {"gem_p": 4.5, "learn_p": True},
        {"dense_bias": False, "fusion": "sum"},
    ],
    ids=str,
)
def test_maps_and_bias_add_up_to_the_similarity(saved, options):
    checkpoint, images = saved(**options), pictures()
    embeddings = own_embeddings(checkpoint, images)
    similarity = embeddings[0] @ embeddings[1]
    assert abs(similarity) < 0.999
    found = maps.similarity_maps(*maps.PlaceVectors(checkpoint, mx.cpu())(images))
    assert found.similarity == pytest.approx(similarity, abs=1e-5)
    for side in (found.a, found.b):
        assert side.whole.shape == (3, 5) and side.whole.dtype == np.float32
        assert list(side.branches) == list(checkpoint.description["config"])
        assert side.whole.sum() + side.bias == pytest.approx(similarity, abs=1e-5)
        np.testing.assert_allclose(sum(side.branches.values()), side.whole, atol=1e-6)
        assert (abs(side.bias) > 0.001) == checkpoint.description["dense_bias"]


def test_each_image_has_its_own_places(saved):
    """Three images in batches of two, of other sizes, resized as for an evaluation."""
    prefix = saved().prefix
    net = lively_network("mobilenetv2_0.25" if LONG else "two_convolutions", 64)
    checkpoints.save(net, prefix, {"image_width": 64, "image_height": 64})
    checkpoint = checkpoints.Checkpoint(prefix)
    images = [np.random.RandomState(n).randint(0, 256, (40 + n, 70, 3), dtype=np.uint8) for n in range(3)]
    found = maps.PlaceVectors(checkpoint, mx.cpu(), batch_size=2)(images)
    assert len(found) == 3
    for image, places in zip(images, found):
        x = maps.images.resize(mx.nd.array(image, dtype="uint8"), (64, 64)).expand_dims(0)
        x = maps.images.normalise(x, checkpoint.description["mean"], checkpoint.description["std"])
        np.testing.assert_allclose(places.embedding, checkpoint.graph(mx.cpu())(x).asnumpy()[0], atol=1e-5)


def test_the_released_graph_can_be_explained(shared):
    symbol = mx.sym.load(str(next((shared / "paper").glob("*-symbol.json"))))
    head = heads.Head(SimpleNamespace(prefix="net", symbol=symbol, arg_params={}, description={"dtype": "float32"}))
    assert head.map_name in symbol.get_internals().list_outputs()
    _, (channels,), _ = symbol.get_internals()[head.map_name].infer_shape(data=(1, 3, 224, 224))
    assert channels == (1, 2048, 14, 14)


@pytest.mark.parametrize("p", [3.0, 1.7])
def test_each_place_adds_what_the_definition_says(saved, p):
    """Again in float64, place by place, for a feature map made by hand."""
    checkpoint = saved(no_convolutions, gem_p=p)
    random = np.random.RandomState(3)
    x = random.uniform(0.1, 1, (3, 2, 4))
    x[:, 1, 2] = 7  # one hot place
    other = random.randn(12)
    values = {name: value.asnumpy().astype(float) for name, value in checkpoint.arg_params.items()}
    g = (x**p).mean((1, 2)) ** (1 / p)
    pooled = {
        "S": lambda place: place / 8,
        "M": lambda place: np.where(place == 7, 7, 0),
        "G": lambda place: place**p / (8 * g ** (p - 1)),
    }
    terms = heads.Head(checkpoint)(x.astype(np.float32))
    for branch, letter in enumerate("SMG"):
        weight, bias = (values[f"faenet0_dense{branch}_{kind}"] for kind in ("weight", "bias"))
        whole = {"S": x.mean((1, 2)), "M": x.max((1, 2)), "G": g}[letter]
        length = np.linalg.norm(weight @ whole + bias) * 3**0.5  # three branches of length 1
        held = other[4 * branch : 4 * branch + 4]
        expected = [[held @ (weight @ pooled[letter](x[:, i, j])) / length for j in range(4)] for i in range(2)]
        assert np.abs(expected).max() == np.abs(expected[1][2]) > 0.01
        np.testing.assert_allclose(terms[letter] @ other, expected, atol=1e-6)
        np.testing.assert_allclose(terms["bias"][4 * branch : 4 * branch + 4], bias / length, atol=1e-6)


def test_the_map_peaks_at_the_hot_place_of_the_image(saved):
    """Columns and rows are those of the image."""
    checkpoint, images = saved(no_convolutions), [np.full((HEIGHT, WIDTH, 3), 130, np.uint8) for _ in range(2)]
    for image, (row, column) in zip(images, ((3, 20), (14, 1))):
        image[row, column] = 255
    found = maps.similarity_maps(*maps.PlaceVectors(checkpoint, mx.cpu())(images))
    for side, place in ((found.a, (3, 20)), (found.b, (14, 1))):
        for values in (side.whole, side.branches["M"], side.branches["G"]):
            assert np.unravel_index(values.argmax(), values.shape) == place


def test_without_what_all_share_the_maps_add_up_to_the_similarity_of_the_rest(saved):
    """The cosine similarity of the embeddings' components that are orthogonal to the mean, in float64."""
    checkpoint, images = saved(), pictures(5)
    embeddings = own_embeddings(checkpoint, images).astype(float)
    mean = embeddings.mean(axis=0)
    rest = embeddings - np.outer(embeddings @ mean, mean) / (mean @ mean)
    expected = rest[0] @ rest[1] / np.linalg.norm(rest[0]) / np.linalg.norm(rest[1])
    assert abs(expected - embeddings[0] @ embeddings[1]) > 0.1
    a, b, *_ = (maps.without(places, 7 * mean) for places in maps.PlaceVectors(checkpoint, mx.cpu())(images))
    found = maps.similarity_maps(a, b)
    assert found.similarity == pytest.approx(expected, abs=1e-5)
    for side in (found.a, found.b):
        assert side.whole.dtype == np.float32
        assert side.whole.sum() + side.bias == pytest.approx(expected, abs=1e-5)
        np.testing.assert_allclose(sum(side.branches.values()), side.whole, atol=1e-6)


def test_macs_mass_is_where_the_maxima_are():
    places = np.array([[1, 0, 6], [5, 0, 6], [2, 0, 1], [3, 0, 6]], np.float32)
    np.testing.assert_allclose(heads.mac(places), [[0, 0, 2], [5, 0, 2], [0, 0, 0], [0, 0, 2]])


@pytest.mark.parametrize("p", [1.0, 3.0, 6.0])
def test_gem_of_small_values_neither_underflows_nor_is_nan(p):
    found = heads.gem(np.zeros((4, 2), np.float32), np.float32(p))
    np.testing.assert_allclose(found, 1e-6 / 4, rtol=1e-4)


def test_what_cannot_be_explained_is_told(saved):
    checkpoint = saved()
    checkpoint.symbol = mx.sym.tanh(checkpoint.symbol, name="squashed")
    with pytest.raises(InputError, match=r"net-symbol.json: squashed \(tanh\) after the last feature map"):
        heads.Head(checkpoint)
    checkpoint.description["dtype"] = "int8"
    with pytest.raises(InputError, match="is in int8.*; give the checkpoint that it was made from"):
        heads.Head(checkpoint)
    a, b = (mx.sym.L2Normalization(mx.sym.Pooling(mx.sym.var(n), global_pool=True, pool_type="max")) for n in "ab")
    checkpoint.symbol, checkpoint.description["dtype"] = mx.sym.add_n(a, b), "float32"
    with pytest.raises(InputError, match="of 2 feature maps; expected one"):
        heads.Head(checkpoint)


def test_a_map_is_drawn_where_it_is():
    values = np.array([[0, 0, 0.5], [0, -1, 0]])
    heat = np.asarray(maps.heat(values, 0.5, (30, 20)))
    red, blue = heat[5, 28].astype(int), heat[15, 15].astype(int)
    assert red[0] > red[2] + 50 and blue[2] > blue[0] + 50 and red[3] > 200 and blue[3] > 200
    assert heat[:, :3, 3].max() == 0
    picture = Image.new("RGB", (30, 20), (0, 200, 0))
    drawn = np.asarray(maps.over(picture, values, 0.5))
    assert len(set(drawn[5, 1])) == 1  # grey
    assert maps.scale_of(values, 3 * values) == 3 and maps.scale_of(0 * values) == 1


def write(folder, count=3):
    paths = [folder / f"{number}.png" for number in range(count)]
    for path, pixels in zip(paths, pictures(count)):
        Image.fromarray(pixels).save(str(path))
    return paths


def test_the_command_draws_and_prints_sums(saved, tmp_path, here):
    prefix, paths, file = saved().prefix, write(tmp_path), tmp_path / "new" / "maps.png"
    result = here("-m", "cgd.explain", prefix, *paths, "-o", file)
    assert result.returncode == 0, result.stderr
    embeddings = own_embeddings(checkpoints.Checkpoint(prefix), pictures(3))
    lines = result.stdout.splitlines()
    assert len(lines) == 7 and lines[-1] == f"written: {file}"
    for number in (1, 2):
        title, *sums = lines[3 * number - 3 : 3 * number]
        similarity = float(title.rsplit(" ", 1)[1])
        assert similarity == pytest.approx(embeddings[0] @ embeddings[number], abs=1e-4)
        for line, path in zip(sums, (paths[0], paths[number])):
            assert line.startswith(f"  {path}: S ")
            *terms, total = [float(word) for word in line.split(":")[1].split() if word[-1].isdigit()]
            assert len(terms) == 4 and total == similarity and sum(terms) == pytest.approx(total, abs=3e-4)
    drawn, side, gap, text = Image.open(str(file)), explain.SIDE, explain.GAP, explain.LINE
    assert drawn.width > 1200 and 2 * side < drawn.height < 3 * side
    places, shown = maps.PlaceVectors(checkpoints.Checkpoint(prefix), mx.cpu())(pictures(3)), pictures(3)
    for number in (1, 2):
        found = maps.similarity_maps(places[0], places[number])
        for column, name in enumerate(("image", "all", *"SMG")):
            values = [each.whole if name == "all" else each.branches.get(name) for each in (found.a, found.b)]
            for place, item in enumerate((0, number)):
                expected = Image.fromarray(shown[item]).resize((side, side * HEIGHT // WIDTH), Image.BILINEAR)
                if name != "image":
                    expected = maps.over(expected, values[place], maps.scale_of(*values))
                x = gap + column * (2 * (side + gap) + gap) + place * (side + gap)
                y = gap + (number - 1) * (side + 2 * text + 2 * gap) + text
                block = drawn.crop((x, y, x + expected.width, y + expected.height))
                np.testing.assert_allclose(np.asarray(block, int), np.asarray(expected, int), atol=2)
    assert "cropped images" in result.stderr
    boxes = [word for _ in paths for word in ("--box", "2,1,20,12")]
    cropped = here("-m", "cgd.explain", prefix, *paths, "-o", file, *boxes)
    assert cropped.returncode == 0 and cropped.stdout != result.stdout and "cropped images" not in cropped.stderr


def test_the_command_leaves_out_what_descriptors_share(saved, tmp_path, here):
    prefix, paths = saved().prefix, write(tmp_path)
    embeddings = own_embeddings(checkpoints.Checkpoint(prefix), pictures(3))
    np.savez(str(tmp_path / "saved.npz"), embeddings=embeddings, identities=[0, 0, 1])
    np.save(str(tmp_path / "vectors.npy"), embeddings)
    words = ["-m", "cgd.explain", prefix, *paths, "-o", tmp_path / "maps.png", "--common"]
    results = [here(*words, tmp_path / name) for name in ("saved.npz", "vectors.npy")]
    assert results[0].returncode == 0 and results[0].stdout == results[1].stdout
    mean = embeddings.mean(axis=0) / np.linalg.norm(embeddings.mean(axis=0))
    rest = embeddings - (embeddings @ mean)[:, None] * mean
    rest /= np.linalg.norm(rest, axis=1, keepdims=True)
    title = re.search(r": similarity ([-.\d]+), of the rest ([-.\d]+)$", results[0].stdout.splitlines()[0])
    expected = embeddings[0] @ embeddings[1], rest[0] @ rest[1]
    notice = "the maps say little; --common shows what differs"
    assert expected[0] > 0.95 and notice not in results[0].stderr
    assert notice in here(*words[:3], *paths[:2], *words[-3:-1]).stderr
    assert embeddings[0] @ embeddings[2] < 0.95 and notice not in here(*words[:-1]).stderr
    np.testing.assert_allclose([float(number) for number in title.groups()], expected, atol=1e-4)
    np.save(str(tmp_path / "short.npy"), embeddings[:, :5])
    np.save(str(tmp_path / "words.npy"), np.array(["a", "b"]))
    for name, told in (
        ("short.npy", "short.npy: 5 dimensions; those of"),
        ("words.npy", "words.npy: not a file of test.py --save-embeddings"),
        ("0.png", "0.png: not a file of test.py --save-embeddings"),
        ("gone.npz", "gone.npz: not a file of test.py --save-embeddings"),
    ):
        result = here(*words, tmp_path / name)
        assert result.returncode == 2 and told in result.stderr
        assert len([line for line in result.stderr.splitlines() if line.startswith("error")]) == 1


def test_the_command_compares_a_query_with_its_neighbours_in_an_index(saved, tmp_path, here):
    """As the same command does with their paths, boxes and mean; in another order than that of the index."""
    prefix, paths = saved().prefix, write(tmp_path, 6)
    (tmp_path / "list.txt").write_text("image_id class_id path\n" + "".join(f"{n} 0 {n}.png\n" for n in range(1, 6)))
    (tmp_path / "boxes.txt").write_text("".join(f"{n} {n} 1 {20 - n} 12\n" for n in range(1, 6)))
    words = [tmp_path / "list.txt", "--bbox-txt", tmp_path / "boxes.txt", "-o", tmp_path / "i", "--gpu", -1]
    assert here("-m", "cgd.describe", prefix, *words, "--num-workers", 0).returncode == 0
    vectors, own = (
        np.load(str(tmp_path / "i" / "vectors.npy")),
        own_embeddings(checkpoints.Checkpoint(prefix), pictures(1)),
    )
    nearest = 1 + np.argsort(-(vectors @ own[0]))[:3]
    words = ["-m", "cgd.explain", prefix, "-o", tmp_path / "maps.png"]
    asked = ["--index", tmp_path / "i", "--query", paths[0], "-k", 3]
    result = here(*words, *asked)
    assert result.returncode == 0, result.stderr
    boxes = ["0,0,24,16", *(f"{n},1,{20 - n},12" for n in nearest)]
    for common in (tmp_path / "i" / "vectors.npy", tmp_path / "i"):
        same = [paths[0], *(paths[n] for n in nearest), "--common", common]
        assert here(*words, *same, *(word for box in boxes for word in ("--box", box))).stdout == result.stdout
    similarities = [float(number) for number in re.findall(r": similarity ([-.\d]+)", result.stdout)]
    np.testing.assert_allclose(similarities, vectors[nearest - 1] @ own[0], atol=1e-4)
    stored = np.load(str(tmp_path / "i" / "vectors.npy"), mmap_mode="r+")
    kept = stored[0, 0]
    for value, wrong, told in (
        (np.nan, asked, "i: it is damaged"),
        (np.nan, [*paths[:2], "--common", tmp_path / "i"], "i: is damaged: its descriptors are not finite"),
        (np.inf, [*paths[:2], "--common", tmp_path / "i" / "vectors.npy"], "vectors.npy: not a file of test.py"),
    ):
        stored[0, 0] = value
        stored.flush()
        result = here(*words, *wrong)
        assert result.returncode == 2 and told in result.stderr.splitlines()[-1]
    stored[0, 0] = kept
    stored.flush()
    facts = (tmp_path / "i" / "index.json").read_text()
    (tmp_path / "i" / "index.json").write_text(re.sub('"checksum": "..', '"checksum": "', facts))
    for wrong, told in (
        ([*paths[:2], "--common", tmp_path / "i"], "i: an index of another network than"),
        (asked, "net: is not the network that described"),
        (asked[2:], "--query and --index: expected both or neither"),
        ([*asked, paths[1]], "expected two or more images, or --query A --index INDEX"),
        ([paths[1]], "expected two or more images, or --query A --index INDEX"),
    ):
        result = here(*words, *wrong)
        assert result.returncode == 2 and told in result.stderr


@pytest.mark.parametrize(
    "words, told",
    [
        (["-o", "maps.gif"], "-o maps.gif: expected a name that ends with .png or .jpg"),
        (["-o", "/dev/null/maps.png"], "/dev/null/maps.png: cannot be written"),
        (["-o", "FOLDER/1.png"], "1.png: is a file that this command reads; choose another name"),
        (["-o", "FOLDER/maps.png", "--box", "1,2,3,4"], "--box: 1 given for 2 images; expected one for each"),
        (["-o", "FOLDER/maps.png", "--box", "1,2,3"], "expected X,Y,W,H"),
        (["-o", "FOLDER/maps.png", "--box", "0,0,9,9", "--box", "99,0,1,1"], "1.png: the box (99, 0, 1, 1) starts"),
        (["gone.png", "-o", "FOLDER/maps.png"], "gone.png: No such file"),
        (["-o", "FOLDER/maps.png", "-k", "3"], "-k: for --query A --index INDEX"),
        ([*["b.png"] * 340, "-o", "FOLDER/maps.jpg"], "JPEG has no room for 341 rows; expected a name that ends with"),
    ],
    ids=str,
)
def test_bad_input_to_explain_is_one_line_and_code_2(saved, tmp_path, here, words, told):
    paths = write(tmp_path, 2)
    words = [word.replace("FOLDER", str(tmp_path)) for word in words]
    result = here("-m", "cgd.explain", saved().prefix, *paths, *words)
    assert result.returncode == 2 and not result.stdout
    assert told in result.stderr and len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("*maps*"))
