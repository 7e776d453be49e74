"""Checkpoints: round trips, the authors' way of reading them, and every way in which one can be wrong."""

import json
import os
import resource
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from cgd.network import checkpoints, descriptions, model
from cgd.system.environment import mx
from cgd.system.errors import InputError
from conftest import lively_network

SIDE = 64


def pictures(count=2):
    return mx.nd.array(np.random.RandomState(0).randn(count, 3, SIDE, SIDE))


def small_network(classes=5):
    net = model.CGD("MG", 12, "resnet18_v1", classes=classes)
    net.initialize(mx.init.Xavier())
    net(pictures(4))  # sets the shapes
    return net


@pytest.fixture
def saved(tmp_path):
    net = small_network()
    prefix = str(tmp_path / "net")
    checkpoints.save(net, prefix, {"image_width": SIDE, "image_height": SIDE, "iteration": 7, "dataset": "demo"})
    return net, prefix


def change_params(prefix, change):
    values = mx.nd.load(prefix + "-0000.params")
    change(values)
    mx.nd.save(prefix + "-0000.params", values)


def test_graph_and_block_give_the_same_embedding_as_the_network(saved):
    net, prefix = saved
    expected = net.embed(pictures()).asnumpy()
    checkpoint = checkpoints.Checkpoint(prefix)
    np.testing.assert_allclose(checkpoint.graph(mx.cpu())(pictures()).asnumpy(), expected, atol=1e-6)
    again = model.CGD("MG", 12, "resnet18_v1")
    checkpoint.load_into(again)
    np.testing.assert_array_equal(again(pictures()).asnumpy(), expected)


def test_a_graph_has_no_attribute_that_older_mxnet_refuses(tmp_path):
    """Pooling has had a layout since MXNet 1.5, which writes it even if it is the default."""
    pooling = mx.gluon.nn.MaxPool2D(prefix="pool_")(mx.sym.var("data"))
    checkpoints.write(str(tmp_path / "net"), pooling, {}, {})
    written = json.loads((tmp_path / "net-symbol.json").read_text())["nodes"][1]["attrs"]
    assert set(written) == {"global_pool", "kernel", "pad", "pool_type", "pooling_convention", "stride"}
    assert "layout" in json.loads(pooling.tojson())["nodes"][1]["attrs"]


def test_the_authors_way_of_loading_works(saved):
    """load_checkpoint, simple_bind, copy_params_from, forward: what the released evaluation code does."""
    net, prefix = saved
    symbol, arg_params, aux_params = mx.model.load_checkpoint(prefix, 0)
    executor = symbol.simple_bind(ctx=mx.cpu(), data=(2, 3, SIDE, SIDE), grad_req="null", force_rebind=True)
    executor.copy_params_from(arg_params, aux_params)
    output = executor.forward(is_train=False, data=pictures())[0].asnumpy()
    np.testing.assert_allclose(output, net.embed(pictures()).asnumpy(), atol=1e-5)


def test_a_network_that_has_been_hybridized_saves_the_same(saved, tmp_path):
    net, prefix = saved
    net.hybridize(static_alloc=True)
    net(pictures())
    checkpoints.save(net, str(tmp_path / "again"), {})
    for ending in ("-symbol.json", "-0000.params"):
        assert (tmp_path / ("again" + ending)).read_bytes() == (tmp_path / ("net" + ending)).read_bytes()


def test_weights_are_read_only_once_the_network_stands_still(tmp_path, monkeypatch):
    """Saved at once after a forward pass, 13 of 120 ResNet-18s went wrong: too rare to test, so the order is."""
    net, events = small_network(), []
    waitall, data = mx.nd.waitall, mx.gluon.Parameter.data
    monkeypatch.setattr(mx.nd, "waitall", lambda: events.append("wait") or waitall())
    monkeypatch.setattr(mx.gluon.Parameter, "data", lambda self, ctx=None: events.append("read") or data(self, ctx))
    checkpoints.save(net, str(tmp_path / "net"), {})
    assert events[0] == "wait" and "read" in events


def test_training_goes_on_from_a_checkpoint_with_a_new_classifier(saved):
    net, prefix = saved
    again = model.CGD("MG", 12, "resnet18_v1", classes=9)
    again.initialize()
    checkpoints.Checkpoint(prefix).load_into(again)
    embedding, _, (logits,) = again(pictures())
    assert logits.shape == (2, 9)
    np.testing.assert_array_equal(embedding.asnumpy(), net.embed(pictures()).asnumpy())


def test_the_description_says_what_an_evaluation_needs(saved):
    with open(saved[1] + ".json") as file:
        description = json.load(file)
    assert description["config"] == "MG" and description["dim"] == 12 and description["iteration"] == 7
    assert description["versions"]["mxnet"] == mx.__version__
    assert set(checkpoints.Checkpoint(saved[1]).description) >= {"mean", "std", "cropped", "dataset", "fusion"}


def test_a_checkpoint_without_description_has_the_released_models(saved):
    os.remove(saved[1] + ".json")
    description = checkpoints.Checkpoint(saved[1]).description
    assert description == dict(descriptions.RELEASED, dim=12)  # which the graph gives
    assert (description["config"], description["image_width"], description["cropped"]) == ("MG", 224, True)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda v: v.pop("arg:faenet0_dense1_bias"), "lacks 1 .*faenet0_dense1_bias"),
        (lambda v: v.pop("aux:resnetv10_batchnorm0_running_var"), "lacks 1 .*running_var"),
        (lambda v: v.update({"arg:extra": mx.nd.zeros(1)}), "unknown 1 .*extra"),
        (lambda v: v.update({"arg:faenet0_dense1_bias": mx.nd.zeros(7)}), r"dense1_bias has shape \(7,\), .*\(6,\)"),
        (
            lambda v: v.update({"arg:faenet0_dense1_bias": mx.nd.array([0, 1, np.nan, 0, 0, 0])}),
            "dense1_bias .*not finite",
        ),
        (lambda v: v.update({"faenet0_dense1_bias": mx.nd.zeros(6)}), "0000.params: .*arg: or aux:"),
        (
            lambda v: v.update({"arg:faenet0_dense1_bias": mx.nd.zeros(6, dtype="float16")}),
            "dense1_bias is in float16; expected float32",
        ),
    ],
)
def test_parameters_that_do_not_fit_the_graph_are_named(saved, change, words):
    change_params(saved[1], change)
    with pytest.raises(InputError, match=words):
        checkpoints.Checkpoint(saved[1])


def test_another_length_of_the_descriptors_is_named(saved):
    file = Path(saved[1] + ".json")
    file.write_text(json.dumps(dict(json.loads(file.read_text()), dim=24)))
    with pytest.raises(InputError, match="gives 12 dimensions, but .*json says 24"):
        checkpoints.Checkpoint(saved[1])


def test_a_missing_description_is_told_once(saved, capsys):
    descriptions.read(saved[1])
    assert capsys.readouterr().err == ""
    os.remove(saved[1] + ".json")
    for _ in range(2):
        assert descriptions.read(saved[1])["dim"] == 1536
    assert capsys.readouterr().err.count(".json is missing: taken as the authors' model") == 1


def test_parameters_that_do_not_fit_the_block_are_named(saved):
    checkpoint = checkpoints.Checkpoint(saved[1])
    with pytest.raises(InputError, match="lacks .*faenet0_dense2"):
        checkpoint.load_into(model.CGD("SMG", 12, "resnet18_v1"))
    with pytest.raises(InputError, match="unknown .*faenet0_dense1"):
        checkpoint.load_into(model.CGD("M", 6, "resnet18_v1"))
    with pytest.raises(InputError, match="faenet0_dense0_weight has shape"):
        checkpoint.load_into(model.CGD("MG", 24, "resnet18_v1"))


@pytest.mark.parametrize("ending, words", [("-symbol.json", "no such file"), ("-0000.params", "no such file")])
def test_a_missing_file_is_named(saved, tmp_path, ending, words):
    (tmp_path / ("net" + ending)).unlink()
    with pytest.raises(InputError, match=ending + ".*" + words):
        checkpoints.Checkpoint(saved[1])


def test_an_archive_not_yet_unpacked_is_recognised(tmp_path):
    (tmp_path / "CGD.x.dim1536.tar.gz").touch()
    with pytest.raises(InputError, match="unpack .*tar.gz first: tar zxf"):
        checkpoints.Checkpoint(tmp_path / "CGD.x.dim1536")


@pytest.mark.parametrize("ending", ["-symbol.json", "-0000.params", ".json", ".tar.gz"])
def test_the_name_of_a_file_instead_of_the_prefix(saved, tmp_path, ending):
    with pytest.raises(
        InputError, match=f"{tmp_path}/net{ending}: a checkpoint is given by its prefix: {tmp_path}/net$"
    ):
        checkpoints.Checkpoint(f"{saved[1]}{ending}")
    with pytest.raises(InputError, match=f"that is a folder; name a checkpoint in it, such as {tmp_path}/net$"):
        checkpoints.Checkpoint(tmp_path)
    (tmp_path / "new.tar.gz").touch()
    with pytest.raises(
        InputError, match=f"unpack .*/new.tar.gz first: tar zxf .*/new.tar.gz .*; then give {tmp_path}/new$"
    ):
        checkpoints.Checkpoint(tmp_path / f"new{ending}")
    released = tmp_path / f"CGD.CUB200.C_concat_MG.ResNet50v.dim1536{ending}"
    with pytest.raises(InputError, match="the authors' checkpoint is fetched by: bash download.sh checkpoint$"):
        checkpoints.Checkpoint(released)


@pytest.mark.parametrize("ending", ["-symbol.json", "-0000.params", ".json"])
def test_half_a_file_is_an_error_that_names_it(saved, tmp_path, ending):
    file = tmp_path / ("net" + ending)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="net" + ending):
        checkpoints.Checkpoint(saved[1])


@pytest.mark.parametrize(
    "key, value",
    [
        ("image_width", "64"),
        ("image_width", 0),
        ("mean", [0.5, 0.5]),
        ("mean", [0, True, 0]),
        ("mean", [0, "0", 0]),
        ("mean", [0.0, 0.0, float("nan")]),
        ("mean", 0),
        ("std", [1, None, 1]),
        ("std", [1.0, 0.0, 1.0]),
        ("std", [1.0, -0.5, 1.0]),
        ("std", [1.0, float("inf"), 1.0]),
        ("std", [1, 10**400, 1]),
        ("gem_p", True),
        ("gem_p", 0.0),
        ("gem_p", "3"),
        ("gem_p", float("nan")),
        ("cropped", 1),
        ("dim", 2.5),
    ],
)
def test_a_description_that_cannot_be_is_named(saved, key, value):
    with open(saved[1] + ".json") as file:
        description = dict(json.load(file), **{key: value})
    with open(saved[1] + ".json", "w") as file:
        json.dump(description, file)
    with pytest.raises(InputError, match="net.json: {} is ".format(key)):
        checkpoints.Checkpoint(saved[1])


@pytest.mark.parametrize("key, value", [("mean", [0, 0, 0]), ("std", [1, 1, 0.5]), ("gem_p", 3)])
def test_whole_numbers_are_numbers_too(saved, key, value):
    with open(saved[1] + ".json") as file:
        description = dict(json.load(file), **{key: value})
    with open(saved[1] + ".json", "w") as file:
        json.dump(description, file)
    assert checkpoints.Checkpoint(saved[1]).description[key] == value


@pytest.mark.parametrize(
    "change",
    [
        lambda graph: graph["heads"].__setitem__(0, [len(graph["nodes"]) - 1, 9, 0]),
        lambda graph: graph["heads"].clear(),
        lambda graph: graph["nodes"][-1]["inputs"][0].__setitem__(0, 10**6),
        lambda graph: graph["nodes"][3]["inputs"].append([len(graph["nodes"]) - 1, 0, 0]),
        lambda graph: graph["nodes"][3].pop("name"),
        lambda graph: graph.pop("nodes"),
    ],
    ids=["an output that is not there", "no output", "a node that is not there", "a circle", "no name", "no nodes"],
)
def test_a_graph_that_does_not_hold_together_is_named(saved, change):
    """MXNet would follow the first three, and crash."""
    with open(saved[1] + "-symbol.json") as file:
        graph = json.load(file)
    change(graph)
    with open(saved[1] + "-symbol.json", "w") as file:
        json.dump(graph, file)
    with pytest.raises(InputError, match="net-symbol.json: not a graph that MXNet can read"):
        checkpoints.Checkpoint(saved[1])


def test_a_graph_for_other_pictures_is_named(saved):
    """A network with a Dense layer for the map of one size, as the zoo's VGG has, cannot take another."""
    data = mx.sym.var("data")
    weight = mx.sym.var("w", shape=(2, 12))
    graph = mx.sym.FullyConnected(data, weight, num_hidden=2, no_bias=True)
    graph.save(saved[1] + "-symbol.json")
    mx.nd.save(saved[1] + "-0000.params", {"arg:w": mx.nd.ones((2, 12))})
    with pytest.raises(InputError, match="net-symbol.json: .*64 x 64"):
        checkpoints.Checkpoint(saved[1])


def test_a_graph_with_two_outputs_is_told(saved):
    """Such as that of a network with its classifier."""
    symbol = mx.sym.load(saved[1] + "-symbol.json")
    mx.sym.Group([symbol, symbol.get_internals()["faenet0_dense0_fwd_output"]]).save(saved[1] + "-symbol.json")
    with pytest.raises(InputError, match="net-symbol.json: expected one output, found 2"):
        checkpoints.Checkpoint(saved[1])


def test_a_description_of_another_dtype_is_told(saved):
    with open(saved[1] + ".json") as file:
        description = dict(json.load(file), dtype="int8")
    with open(saved[1] + ".json", "w") as file:
        json.dump(description, file)
    with pytest.raises(InputError, match="net-symbol.json: is in float32, but the dtype in .*net.json is int8"):
        checkpoints.Checkpoint(saved[1])


@pytest.mark.parametrize("renamed", [0, 1, 2])
def test_a_kill_between_two_files_leaves_no_description_of_others(saved, monkeypatch, renamed):
    net, prefix = saved
    replace, left = os.replace, [None] * renamed
    monkeypatch.setattr(os, "replace", lambda *names: replace(*names) if left and left.pop() is None else interrupt())

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(net, prefix, {"image_width": 48})
    assert not os.path.exists(prefix + ".json")


@contextmanager
def room_for(size):
    """No file may grow beyond so many bytes: to whoever writes, that is a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("ending, short", [("-symbol.json", 1), ("-0000.params", 1), ("-0000.params", 10**6)])
def test_a_full_disk_is_told_and_leaves_the_old_checkpoint(saved, tmp_path, ending, short):
    """Also where only the last byte finds no room."""
    net, prefix = saved
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with room_for(len(before["net" + ending]) - short):
        with pytest.raises(InputError, match="net{}: cannot be written".format(ending)):
            checkpoints.save(net, prefix, {})
    assert before == {file.name: file.read_bytes() for file in tmp_path.iterdir()}


def test_a_checkpoint_of_links_is_replaced_where_they_lead(saved, tmp_path):
    net, prefix = saved
    (tmp_path / "links").mkdir()
    names = [Path(prefix).name + ending for ending in ("-symbol.json", "-0000.params", ".json")]
    for name in names:
        (tmp_path / "links" / name).symlink_to(tmp_path / name)
    checkpoints.save(net, str(tmp_path / "links" / Path(prefix).name), {"iteration": 77})
    assert all((tmp_path / "links" / name).is_symlink() for name in names)
    assert json.loads((tmp_path / names[2]).read_text())["iteration"] == 77


def test_a_graph_without_descriptors_is_refused(saved):
    net, prefix = saved
    graph = mx.sym.load(prefix + "-symbol.json").get_internals()
    pooled = [name for name in graph.list_outputs() if "pool" in name][-1]
    values = mx.nd.load(prefix + "-0000.params")
    known = set(graph[pooled].list_arguments() + graph[pooled].list_auxiliary_states())
    mx.nd.save(prefix + "-0000.params", {name: value for name, value in values.items() if name[4:] in known})
    graph[pooled].save(prefix + "-symbol.json")
    with pytest.raises(InputError, match=r"net-symbol.json: gives \(.*\); expected descriptors \(N, dim\)"):
        checkpoints.Checkpoint(prefix)


def test_branches_that_the_description_does_not_have_are_told(tmp_path):
    net = lively_network("resnet18_v1", SIDE)
    checkpoints.save(net, str(tmp_path / "net"), {"image_width": SIDE, "image_height": SIDE})
    described = json.loads((tmp_path / "net.json").read_text())
    (tmp_path / "net.json").write_text(json.dumps(dict(described, config="MG")))
    with pytest.raises(InputError, match="net: has 3 branches, but its description 2: MG"):
        checkpoints.Checkpoint(tmp_path / "net").pooled()
    for wrong, told in (({"config": "XYZ"}, "configuration 'XYZ'"), ({"fusion": "mean"}, "fusion 'mean'")):
        (tmp_path / "net.json").write_text(json.dumps(dict(described, **wrong)))
        with pytest.raises(InputError, match=f"net.json: {told}: expected"):
            checkpoints.Checkpoint(tmp_path / "net")


@pytest.mark.parametrize("ending", ["-symbol.json", "-0000.params", ".json"])
def test_a_folder_in_the_place_of_a_file_is_told(saved, ending):
    Path(saved[1] + ending).unlink()
    Path(saved[1] + ending).mkdir()
    with pytest.raises(InputError, match=f"net{ending}: "):
        checkpoints.Checkpoint(saved[1])


def test_a_name_that_is_not_utf8_is_told(saved, tmp_path):
    folder = tmp_path / os.fsdecode(b"n\xe9t")
    with pytest.raises(InputError, match="MXNet takes names in UTF-8 only"):
        checkpoints.save(saved[0], str(folder / "net"), {})
    assert not list(folder.iterdir())
    for ending in ("-symbol.json", "-0000.params", ".json"):
        os.rename(saved[1] + ending, str(folder / ("net" + ending)))
    with pytest.raises(InputError, match="MXNet takes names in UTF-8 only"):
        checkpoints.Checkpoint(folder / "net")


def test_a_description_with_the_options_old_names_is_understood(saved):
    with open(saved[1] + ".json") as file:
        description = json.load(file)
    for name in ("architecture", "fusion", "last_stride"):
        del description[name]
    with open(saved[1] + ".json", "w") as file:
        json.dump(dict(description, combination="B", combine="sum", keep_stride=True), file)
    found = checkpoints.Checkpoint(saved[1]).description
    assert (found["architecture"], found["fusion"], found["last_stride"]) == ("B", "sum", 2)
    assert not {"combination", "combine", "keep_stride"} & set(found)


@pytest.mark.parametrize("architecture", ["CGD", "A", "B"])
def test_pooled_vectors_are_means_maxima_and_cubic_means_of_the_map(tmp_path, architecture):
    net = lively_network("resnet18_v1", SIDE, architecture=architecture)
    checkpoints.save(net, str(tmp_path / "net"), {"image_width": SIDE, "image_height": SIDE})
    x = pictures(3)
    maps = net.features(x).asnumpy().astype(np.float64)
    expected = {
        "S": maps.mean(axis=(2, 3)),
        "M": maps.max(axis=(2, 3)),
        "G": np.cbrt((np.maximum(maps, 1e-6) ** 3).mean(axis=(2, 3))),
    }
    if architecture == "B":
        expected = {"SMG": np.concatenate(list(expected.values()), axis=1)}
    pooled = checkpoints.Checkpoint(tmp_path / "net").pooled()
    assert list(pooled) == list(expected)
    for name, checkpoint in pooled.items():
        vectors = expected[name] / np.linalg.norm(expected[name], axis=1, keepdims=True)
        assert np.ptp(vectors, axis=0).max() > 0.01
        np.testing.assert_allclose(checkpoint.graph(mx.cpu())(x).asnumpy(), vectors, atol=1e-5)


def test_a_checkpoint_that_is_being_written_is_not_taken_for_the_released_one(saved, tmp_path):
    description = Path(saved[1] + ".json")
    description.rename(description.with_name(f".part-0a1b2c3d-{description.name}"))
    with pytest.raises(InputError, match="net: is being written, or .* remove .*0a1b2c3d-net.json"):
        descriptions.read(saved[1])
