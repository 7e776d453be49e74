"""The network: its graph against the released one, its parts against numpy."""

import hashlib
import itertools
import json
import socket
from ast import literal_eval
from collections import Counter

import numpy as np
import pytest

from cgd.network import backbones, checkpoints, descriptors, model, options, weights
from cgd.system.environment import mx
from cgd.system.errors import InputError
from cgd.training import losses

PAPER_CONFIGS = ["S", "M", "G", "SM", "MS", "SG", "GS", "MG", "GM", "SMG", "MSG", "GSM"]

# Facts of the released graph. The digest is that of `canonical` below.
RELEASED_OPERATORS = {
    "null": 303,
    "Convolution": 53,
    "BatchNorm": 53,
    "Activation": 49,
    "elemwise_add": 16,
    "Pooling": 3,
    "L2Normalization": 3,
    "FullyConnected": 2,
    "broadcast_power": 2,
    "_rdiv_scalar": 1,
    "clip": 1,
    "Concat": 1,
}
RELEASED_DIGEST = "f6c37650c7ee071a1fe669c4823f776483814174444cb96f58c6e0137953a60d"


def canonical(graph):
    """What a graph computes, one entry a node: operator, attributes as values, shape and learning-rate factor, inputs.

    Left out: names, how a parameter is initialised, and `layout`, which today's MXNet writes into every pooling.
    """
    left_out = ("layout", "__init__", "__dtype__", "__storage_type__", "__wd_mult__")
    nodes = []
    for node in graph["nodes"]:
        attributes = {
            name: plain(value) for name, value in sorted(node.get("attrs", {}).items()) if name not in left_out
        }
        nodes.append([node["op"], attributes, [[source, output] for source, output, _ in node["inputs"]]])
    return nodes


def plain(text):
    """'(64L, 3L)' -> [64.0, 3.0]; '1e-05' -> 1e-05; 'avg' -> 'avg'."""
    try:
        value = literal_eval(text.replace("L", ""))
    except ValueError:
        return text
    if isinstance(value, tuple):
        return [float(number) for number in value]
    return float(value)


def small(config="MG", **options):
    return model.CGD(config, options.pop("dim", 12), options.pop("backbone", "resnet18_v1"), **options)


def random_pictures(count=2, side=64, seed=0):
    return mx.nd.array(np.random.RandomState(seed).randn(count, 3, side, side))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The graph of the paper's configuration, as a checkpoint writes it."""
    net = model.CGD(classes=100)
    net.initialize()
    net(mx.nd.zeros((1, 3, 224, 224)))
    prefix = str(tmp_path_factory.mktemp("exported") / "MG")
    checkpoints.save(net, prefix, {})
    with open(prefix + "-symbol.json") as file:
        return json.load(file)


def test_the_exported_graph_has_the_released_operators(exported):
    assert Counter(node["op"] for node in exported["nodes"]) == RELEASED_OPERATORS


def test_the_exported_graph_is_the_released_one(exported):
    text = json.dumps(canonical(exported), sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest() == RELEASED_DIGEST


def test_the_exported_graph_equals_the_released_file(exported, shared):
    file = next((shared / "paper").glob("*-symbol.json"))
    released = json.loads(file.read_text())
    for ours, theirs in itertools.zip_longest(canonical(exported), canonical(released)):
        assert ours == theirs
    names = [[node["name"] for node in graph["nodes"] if node["op"] == "null"] for graph in (exported, released)]
    assert names[0] == names[1]


def test_cub_training_network_has_the_papers_size():
    net = model.CGD(classes=100)
    net.initialize()
    net(mx.nd.zeros((1, 3, 64, 64)))
    total = sum(int(np.prod(p.shape)) for p in net.collect_params().values())
    assert round(total / 1e6, 1) == 26.9


@pytest.mark.parametrize("config", PAPER_CONFIGS)
@pytest.mark.parametrize("fusion", ["concat", "sum"])
def test_every_configuration_gives_unit_vectors(config, fusion):
    net = small(config, fusion=fusion)
    net.initialize()
    embedding = net(random_pictures()).asnumpy()
    assert embedding.shape == (2, 12)
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, atol=1e-5)


def pooled_by_hand(net, pictures):
    """S, M and G of the backbone's map, in numpy and float64."""
    x = net.features(pictures).asnumpy().astype(float)
    return [x.mean((2, 3)), x.max((2, 3)), (np.clip(x, 1e-6, None) ** 3).mean((2, 3)) ** (1 / 3)]


def trained_form(**options):
    net = small("SMG", **options)
    mx.random.seed(0)
    net.initialize(mx.init.Normal(0.1))
    return net


def test_a_network_keeps_all_its_options():
    given = dict(zip(options.OPTIONS, ("SM", 6, "resnet18_v1", "A", "concat", 2.0, True, False, 2)))
    assert model.CGD(**given).options == given


def test_the_embedding_is_what_the_definition_says():
    """Pooling, Dense and both normalisations again, in numpy and float64, from the backbone's map on."""
    net, pictures = trained_form(classes=5), random_pictures()
    embedding, ranked, (logits,) = net(pictures)
    pooled = pooled_by_hand(net, pictures)
    branches = [dense(vector, layer) for vector, layer in zip(pooled, net.reductions)]
    joined = np.concatenate([unit(branch) for branch in branches], axis=1)
    np.testing.assert_allclose(embedding.asnumpy(), unit(joined), atol=1e-5)
    np.testing.assert_array_equal(ranked[0].asnumpy(), embedding.asnumpy())
    assert len(ranked) == 1
    # the classifier sees the first letter's vector; fresh batch norm divides by sqrt(1 + eps)
    expected = dense(pooled[0] / np.sqrt(1 + 1e-5), net.classifier[1])
    np.testing.assert_allclose(logits.asnumpy(), expected, rtol=1e-3, atol=1e-5)


def test_the_operators_of_the_papers_backbones():
    """Ioffe and Szegedy, Figure 5: pooling by mean in 3a, 3b, 4a to 4d and 5a, by maximum in the stem, 3c, 4e and 5b.

    A squeeze-and-excitation block has one mean and one sigmoid; there are 3 + 4 + 6 + 3.
    """
    kinds = {}
    for name in ("bn_inception", "se_resnet50"):
        nodes = json.loads(backbones.convolutions(name)(mx.sym.var("data")).tojson())["nodes"]
        kinds[name] = Counter(
            node["attrs"].get("pool_type") or node["attrs"].get("act_type") or node["op"]
            for node in nodes
            if node["op"] in ("Pooling", "Activation", "sigmoid")
        )
    assert (kinds["bn_inception"]["avg"], kinds["bn_inception"]["max"]) == (7, 2 + 2 + 1)
    assert (kinds["se_resnet50"]["sigmoid"], kinds["se_resnet50"]["avg"], kinds["se_resnet50"]["max"]) == (16, 16, 1)


@pytest.mark.parametrize("name", ["ResNet18_v1", "resnet50_V1b", "resnet51_v1", ""])
def test_a_backbone_by_another_name_is_told(name):
    """Gluon's zoo takes capitals, but then the stride and the names of parameters would be other ones."""
    with pytest.raises(InputError, match="expected one of .*resnet50_v1b"):
        backbones.convolutions(name)


@pytest.mark.parametrize("fusion", ["concat", "sum"])
def test_type_a_ranks_each_branch_and_combines_them_for_the_test(fusion):
    net, pictures = trained_form(classes=5, architecture="A", fusion=fusion), random_pictures()
    embedding, ranked, _ = net(pictures)
    branches = [unit(dense(*pair)) for pair in zip(pooled_by_hand(net, pictures), net.reductions)]
    for found, expected in itertools.zip_longest(ranked, branches):
        np.testing.assert_allclose(found.asnumpy(), expected, atol=1e-5)
    combined = sum(branches) if fusion == "sum" else np.concatenate(branches, axis=1)
    np.testing.assert_allclose(embedding.asnumpy(), unit(combined), atol=1e-5)


@pytest.mark.parametrize("fusion", ["concat", "sum"])
def test_type_b_combines_before_its_one_dense_layer(fusion):
    net, pictures = trained_form(classes=5, architecture="B", fusion=fusion, dim=10), random_pictures()
    embedding, ranked, _ = net(pictures)
    pooled = pooled_by_hand(net, pictures)
    combined = sum(pooled) if fusion == "sum" else np.concatenate(pooled, axis=1)
    (layer,) = net.reductions
    np.testing.assert_allclose(embedding.asnumpy(), unit(dense(combined, layer)), atol=1e-5)
    np.testing.assert_array_equal(ranked[0].asnumpy(), embedding.asnumpy())


@pytest.mark.parametrize("architecture", ["CGD", "A", "B"])
def test_the_training_form_without_a_classifier_has_no_logits(architecture):
    net = trained_form(classes=0, architecture=architecture)
    assert net(random_pictures())[2] == [] and net.embed(random_pictures()).shape == (2, 12)


def test_every_dense_layer_begins_with_the_released_graphs_xavier():
    """Uniform within sqrt(2 / mean of inputs and outputs). MXNet's default, Uniform(0.07), would be wider here."""
    net = small("MG", classes=1000)
    mx.random.seed(0)
    net.initialize()
    net(random_pictures(1))
    for layer, outputs in ((net.reductions[0], 6), (net.reductions[1], 6), (net.classifier[1], 1000)):
        weight, bound = layer.weight.data().asnumpy(), np.sqrt(2 / ((512 + outputs) / 2))
        assert weight.shape == (outputs, 512)
        assert 0.95 * bound < np.abs(weight).max() <= bound * (1 + 1e-6)
        np.testing.assert_allclose(weight.std(), bound / np.sqrt(3), rtol=0.05)


def test_a_learned_p_has_a_gradient_and_stays_in_bounds():
    for learn_p in (True, False):
        net = trained_form(classes=5, learn_p=learn_p)
        with mx.autograd.record():
            total = net(random_pictures())[0].square().sum() + net(random_pictures())[2][0].sum()
        total.backward()
        gem = net.descriptors[2]
        if not learn_p:
            assert gem.p.grad_req == "null"
            continue
        assert np.isfinite(gem.p.grad().asnumpy()).all()
        for value, expected in ((0.2, 1.0), (2.5, 2.5), (1e6, descriptors.MAX_P)):
            gem.p.set_data(mx.nd.array([value]))
            net.clamp_p()
            assert gem.p.data().asscalar() == expected
            x = mx.nd.array([[[[0, 0]], [[0, 1e-3]], [[3, 1e4]]]])
            x.attach_grad()
            with mx.autograd.record():
                pooled = gem(x)
            pooled.backward()
            assert all(np.isfinite(a.asnumpy()).all() for a in (pooled, x.grad, gem.p.grad()))


def test_frozen_batch_norm_neither_moves_nor_looks_at_the_batch():
    net, pictures = trained_form(classes=5), random_pictures(4)
    before = net.embed(pictures).asnumpy()
    net.freeze_batch_norm()
    norms = [p for name, p in net.features.collect_params().items() if "batchnorm" in name]
    kept, first = [p.data().asnumpy() for p in norms], net.features[0].weight.data().asnumpy()
    optimiser = mx.gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 1e-6, "wd": 0.1})
    with mx.autograd.record():
        embedding, _, (logits,) = net(pictures)
        total = (logits * logits).sum() + embedding[:, 0].sum()
    np.testing.assert_allclose(embedding.asnumpy(), before, atol=1e-5)
    total.backward()
    optimiser.step(1)
    for p, old in zip(norms, kept):
        np.testing.assert_array_equal(p.data().asnumpy(), old)
    weight = net.features[0].weight.data().asnumpy()
    assert np.isfinite(weight).all() and (weight != first).any()  # the rest moves


# channels of the last map, and millions of parameters with 1,000 classes: the paper's table, by FACTS of its readers
BACKBONES = {"se_resnet50": (2048, 28.1), "bn_inception": (1024, 11.3), "shufflenet_v2": (1024, 2.28)}
SIZES = dict(BACKBONES, resnet50_v1b=(2048, 25.6))


@pytest.mark.parametrize("name", SIZES)
def test_a_backbone_of_ours_has_its_size_and_its_stride(name):
    channels, millions = SIZES[name]
    for last_stride, side in ((2, 4), (1, 8)):
        features = backbones.convolutions(name, last_stride)
        features.initialize()
        assert features(random_pictures(1, side=128)).shape == (1, channels, side, side)
    trained = sum(int(np.prod(p.shape)) for p in features.collect_params().values() if p.grad_req != "null")
    total = trained + channels * 1000 + 1000
    assert float("{:.3g}".format(total / 1e6)) == millions
    features(random_pictures(1, side=75))  # sides that are odd at every level


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_of_ours_trains_and_exports(name, tmp_path):
    net, pictures, labels = small(backbone=name, classes=3), random_pictures(4), mx.nd.array([0, 1, 2, 0])
    net.initialize()
    # a tiny rate: the classifier's batch norm makes much of the little that comes out of fresh weights
    optimiser = mx.gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 1e-8})
    found = []
    for _ in range(2):
        with mx.autograd.record():
            embedding, _, (logits,) = net(pictures)
            loss = losses.smoothed_softmax(logits, labels) + losses.batch_hard_triplet(embedding, labels)[0]
        loss.backward()
        optimiser.step(1)
        found.append(loss.asscalar())
    assert found[1] < found[0]
    prefix = str(tmp_path / "net")
    checkpoints.save(net, prefix, {"image_width": 64, "image_height": 64})
    np.testing.assert_allclose(
        checkpoints.Checkpoint(prefix).graph(mx.cpu())(pictures).asnumpy(), net.embed(pictures).asnumpy(), atol=1e-5
    )


def test_channels_are_shuffled_one_of_each_half():
    passing, convolved = mx.nd.arange(3).reshape((1, 3, 1, 1)), 10 + mx.nd.arange(3).reshape((1, 3, 1, 1))
    mixed = backbones._mixed(mx.nd, passing, convolved)
    assert mixed.asnumpy().ravel().tolist() == [0, 10, 1, 11, 2, 12]


def dense(x, layer):
    return x @ layer.weight.data().asnumpy().astype(float).T + layer.bias.data().asnumpy()


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture
def positive_map():
    return mx.nd.array(np.random.RandomState(0).uniform(0.1, 1, (2, 8, 5, 5)))


def test_gem_with_p_1_is_spoc(positive_map):
    gem, spoc = descriptors.GeM(1.0), descriptors.SPoC()
    gem.initialize()
    np.testing.assert_allclose(gem(positive_map).asnumpy(), spoc(positive_map).asnumpy(), rtol=1e-5)


def test_gem_with_large_p_is_near_mac(positive_map):
    gem, mac = descriptors.GeM(60.0), descriptors.MAC()
    gem.initialize()
    values, maxima = gem(positive_map).asnumpy(), mac(positive_map).asnumpy()
    assert (values <= maxima * 1.0001).all()
    np.testing.assert_allclose(values, maxima, rtol=np.log(25) / 60 * 1.1)  # (1/25)^(1/60) <= GeM / MAC


def test_gem_stays_finite_on_a_dead_channel():
    gem = descriptors.GeM(learn_p=True)
    gem.initialize()
    x = mx.nd.zeros((1, 4, 3, 3))
    x.attach_grad()
    with mx.autograd.record():
        y = gem(x).sum()
    y.backward()
    assert np.isfinite(x.grad.asnumpy()).all() and np.isfinite(gem.p.grad().asnumpy()).all()


@pytest.mark.parametrize("learn_p", [False, True])
def test_gem_learns_p_only_when_asked(learn_p):
    net = small("G", learn_p=learn_p)
    net.initialize()
    optimiser = mx.gluon.Trainer(net.collect_params(), "adam", {"learning_rate": 0.1, "wd": 0.1})
    with mx.autograd.record():
        loss = net(random_pictures()).abs().sum()
    loss.backward()
    optimiser.step(1)
    p = net.descriptors[0].p.data().asscalar()
    assert (p != 3) if learn_p else (p == 3)


def test_removing_the_stride_doubles_the_map():
    shapes = []
    for last_stride in (1, 2):
        features = backbones.convolutions("resnet50_v1", last_stride)
        features.initialize()
        shapes.append(features(mx.nd.zeros((1, 3, 224, 224))).shape)
    assert shapes == [(1, 2048, 14, 14), (1, 2048, 7, 7)]


@pytest.mark.parametrize(
    "backbone, side, channels",
    [
        ("resnet18_v1", 64, 512),
        ("resnet50_v2", 64, 2048),
        ("mobilenetv2_1.0", 64, 1280),
        ("mobilenet0.25", 64, 256),
        ("vgg11_bn", 64, 512),
        ("alexnet", 128, 256),
        ("densenet121", 64, 1024),
        ("squeezenet1.1", 64, 512),
        ("inceptionv3", 128, 2048),
    ],
)
def test_every_family_of_the_zoo_is_a_backbone(backbone, side, channels):
    net = small("MG", backbone=backbone)
    net.initialize()
    picture = mx.nd.ones((1, 3, side, side))
    last_map = net.features(picture)
    assert last_map.shape[1] == channels and min(last_map.shape[2:]) > 1
    assert net(picture).shape == (1, 12)


def test_dense_bias_is_an_option():
    with_bias, without = small("MG"), small("MG", dense_bias=False)
    assert set(with_bias.collect_params()) - set(without.collect_params()) == {
        "faenet0_dense0_bias",
        "faenet0_dense1_bias",
    }


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("MX",), "letters of S, M, G"),
        (("MM",), "at most once"),
        (("",), "letters"),
        (("SMG", 1000), "multiple of 3"),
        (("M", 12, "resnet19"), "resnet19"),
    ],
)
def test_what_cannot_be_built_is_said(arguments, words):
    with pytest.raises(InputError, match=words):
        model.CGD(*arguments)


def backbone_file(tmp_path, change=None, whole=True):
    """A parameter file of Gluon's resnet18_v1, as its zoo would have it."""
    zoo = mx.gluon.model_zoo.vision.resnet18_v1()
    zoo.initialize(mx.init.Normal(0.5))
    zoo(mx.nd.zeros((1, 3, 64, 64)))
    mx.nd.waitall()  # see checkpoints.save
    source = zoo if whole else zoo.features
    values = {name: parameter.data() for name, parameter in source._collect_params_with_prefix().items()}
    if change:
        change(values)
    file = tmp_path / "zoo.params"
    mx.nd.save(str(file), values)
    return file, zoo


@pytest.mark.parametrize("whole", [True, False])
def test_backbone_weights_load_from_the_zoos_file(tmp_path, whole):
    file, zoo = backbone_file(tmp_path, whole=whole)
    features = backbones.convolutions("resnet18_v1", last_stride=2)
    weights.load_backbone(features, file)
    pictures = random_pictures()
    expected = pictures
    for block in zoo.features[:-1]:  # all but the average pool
        expected = block(expected)
    np.testing.assert_array_equal(features(pictures).asnumpy(), expected.asnumpy())


def test_backbone_weights_load_from_a_file_with_old_names(tmp_path):
    zoo = mx.gluon.model_zoo.vision.resnet18_v1(prefix="resnetv10_")
    zoo.initialize(mx.init.Normal(0.5))
    zoo(mx.nd.zeros((1, 3, 64, 64)))
    mx.nd.waitall()
    mx.nd.save(str(tmp_path / "old.params"), {name: p.data() for name, p in zoo.collect_params().items()})
    features = backbones.convolutions("resnet18_v1")
    weights.load_backbone(features, tmp_path / "old.params")
    np.testing.assert_array_equal(features[0].weight.data().asnumpy(), zoo.features[0].weight.data().asnumpy())


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda values: values.pop("features.0.weight"), "lacks 1 parameter.*0.weight"),
        (lambda values: values.update({"features.4.9.weight": mx.nd.zeros(1)}), "unknown 1 parameter.*4.9.weight"),
        (lambda values: values.update({"features.0.weight": mx.nd.zeros((3, 3))}), "0.weight has shape"),
    ],
)
def test_a_backbone_file_that_does_not_fit_is_refused_by_name(tmp_path, change, words):
    file, _ = backbone_file(tmp_path, change)
    with pytest.raises(InputError, match=words):
        weights.load_backbone(backbones.convolutions("resnet18_v1"), file)


def test_an_unreadable_backbone_file_is_one_line(tmp_path):
    (tmp_path / "x.params").write_bytes(b"not parameters")
    with pytest.raises(InputError, match="x.params"):
        weights.load_backbone(backbones.convolutions("resnet18_v1"), tmp_path / "x.params")


def test_weights_that_cannot_be_downloaded_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("MXNET_GLUON_REPO", "http://127.0.0.1:9/")
    monkeypatch.setattr(weights.model_store.get_model_file, "__defaults__", (str(tmp_path),))
    with pytest.raises(InputError, match="--backbone-params"):
        weights.zoo_file("resnet18_v1")
    with pytest.raises(InputError, match="bash download.sh weights .*--backbone-params"):
        weights.zoo_file("resnet50_v1")


def test_a_server_that_says_nothing_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "TIMEOUT", (0.05, 0.05))
    monkeypatch.setattr(weights.model_store.get_model_file, "__defaults__", (str(tmp_path),))
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, and never answers
        monkeypatch.setenv("MXNET_GLUON_REPO", "http://127.0.0.1:{}/".format(server.getsockname()[1]))
        with pytest.raises(InputError, match="could not be downloaded .*--backbone-params"):
            weights.zoo_file("resnet18_v1")
    assert mx.gluon.utils.requests.__name__ == "requests"


def test_real_imagenet_weights_load(shared):
    net = model.CGD("MG", 12, "mobilenetv2_1.0")
    net.initialize()
    net(mx.nd.zeros((1, 3, 64, 64)))
    weights.load_backbone(net.features, shared / "weights" / "mobilenetv2_1.0-imagenet-features-only.params")
    zoo = mx.gluon.model_zoo.vision.mobilenet_v2_1_0()
    zoo.features.load_parameters(str(shared / "weights" / "mobilenetv2_1.0-imagenet-features-only.params"))
    pictures = random_pictures()
    pooled = zoo.features(pictures).asnumpy()  # the zoo's features end with the average pool
    np.testing.assert_allclose(net.features(pictures).asnumpy().mean((2, 3)), pooled.reshape(2, -1), atol=1e-4)
