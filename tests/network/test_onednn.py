"""The faster forms of the network on a CPU, against the plain ones."""

import json
import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest

from cgd.network import checkpoints, graphs, int8, model, onednn, onnx_graph, weights
from cgd.system.environment import mx
from cgd.system.errors import InputError
from conftest import LONG, lively_network, needs_bfloat16

SIDE = 64


def network(backbone, config="SMG", classes=None, fast=False, **options):
    return lively_network(
        backbone, SIDE, onednn.for_training if fast else None, config=config, classes=classes, **options
    )


def pictures(count=4, side=SIDE):
    return mx.nd.array(np.random.RandomState(0).randn(count, 3, side, side))


def one_step(net):
    """The embedding, the gradients and the running statistics after one training step."""
    with mx.autograd.record():
        embedding, _, logits = net(pictures())
        loss = (embedding * mx.nd.arange(embedding.size).reshape(embedding.shape).sin()).sum() + logits[
            0
        ].square().mean()
    loss.backward()
    parameters = net.collect_params()
    values = {name: p.grad().asnumpy() for name, p in parameters.items() if p.grad_req != "null"}
    values.update({name: p.data().asnumpy() for name, p in parameters.items() if "running" in name})
    return embedding.asnumpy(), values


@pytest.mark.parametrize("backbone", ["mobilenetv2_0.25", "resnet18_v1"])
def test_a_training_step_is_the_same(backbone):
    plain, expected = one_step(network(backbone, "MG", classes=5))
    fast, values = one_step(network(backbone, "MG", classes=5, fast=True))
    np.testing.assert_allclose(fast, plain, atol=1e-5)
    assert values.keys() == expected.keys()
    scale = max(np.abs(value).max() for name, value in expected.items() if "running" not in name)
    for name, value in expected.items():
        np.testing.assert_allclose(values[name], value, rtol=1e-3, atol=1e-4 * scale, err_msg=name)


def test_relu6_is_replaced_and_saturates():
    net = network("mobilenetv2_0.25", "M", fast=True)
    replaced = [b for b in onednn.children(net.features, onednn.BatchNormReLU6) if isinstance(b, onednn.BatchNormReLU6)]
    assert len(replaced) > 20
    x = mx.nd.array(np.linspace(-20, 20, 4 * 8 * 9).reshape(4, 8, 3, 3))
    norm = mx.gluon.nn.BatchNorm(in_channels=8)
    norm.initialize()
    block = onednn.BatchNormReLU6(norm, 8)
    np.testing.assert_allclose(block(x).asnumpy(), np.clip(norm(x).asnumpy(), 0, 6), atol=1e-5)


def test_every_relu6_is_replaced_also_where_oneDNN_changes_the_layout():
    """MobileNetV2 1.0 has two blocks whose first convolution has 24 input channels."""
    net = model.CGD("M", 12, "mobilenetv2_1.0")
    net.infer_shape(pictures())
    count = len(onednn.children(net.features, onednn.RELU6))
    onednn.for_training(net)
    assert not onednn.children(net.features, onednn.RELU6)
    assert len(onednn.children(net.features, mx.gluon.nn.HybridLambda)) == count
    assert count - len(onednn.children(net.features, onednn.BatchNormReLU6)) == 2


def test_the_clipped_relu_and_its_gradient_by_hand():
    x = mx.nd.array([-9.0, -1e-3, 1e-3, 3.0, 6.0, 6.001, 90.0])
    x.attach_grad()
    with mx.autograd.record():
        y = onednn.clipped_relu(mx.nd, x)
    y.backward(mx.nd.arange(1, 8))
    np.testing.assert_array_equal(y.asnumpy(), np.float32([0, 0, 1e-3, 3, 6, 6, 6]))
    np.testing.assert_array_equal(x.grad.asnumpy(), [0, 0, 3, 4, 5, 0, 0])


def test_weights_load_into_the_faster_form_by_either_kind_of_name(tmp_path):
    file = str(tmp_path / "weights.params")
    source = network("mobilenetv2_0.25", "M")
    expected = source(pictures()).asnumpy()
    for save in (source.features.save_parameters, lambda f: source.features.collect_params().save(f)):
        save(file)
        target = model.CGD("M", 12, "mobilenetv2_0.25")
        target.infer_shape(pictures())
        onednn.for_training(target)
        target.initialize()
        weights.load_backbone(target.features, file)
        target.reductions[0].weight.set_data(source.reductions[0].weight.data())
        np.testing.assert_allclose(target(pictures()).asnumpy(), expected, atol=1e-5)


def test_frozen_batch_norm_is_frozen_in_the_faster_form():
    net = network("mobilenetv2_0.25", "M", classes=5, fast=True)
    net.freeze_batch_norm()
    norms = {name for name in net.collect_params() if "batchnorm" in name and not name.startswith("auxiliary")}
    before = {name: net.collect_params()[name].data().asnumpy() for name in norms}
    _, values = one_step(net)
    assert not any(name in values for name in norms if "running" not in name)
    for name in norms:
        np.testing.assert_array_equal(net.collect_params()[name].data().asnumpy(), before[name])


@pytest.mark.parametrize("backbone", ["mobilenetv2_0.25", "resnet50_v1", "bn_inception"])
def test_a_training_step_with_frozen_batch_norm_is_the_same_when_folded(backbone):
    plain, fast = network(backbone, "MG", classes=5), network(backbone, "MG", classes=5, fast=True)
    for net in (plain, fast):
        net.freeze_batch_norm()
    onednn.fold_frozen_batch_norm(fast)
    assert onednn.children(fast.features, onednn.FrozenConvolution)
    fast.hybridize(static_alloc=True, static_shape=True)  # as the trainer does
    one_step(plain), one_step(fast)
    expected_embedding, expected = one_step(plain)
    embedding, values = one_step(fast)  # the second time in memory that has been used
    np.testing.assert_allclose(embedding, expected_embedding, atol=3e-5)
    assert values.keys() == expected.keys()
    for name, value in expected.items():  # a value next to a bound of a ReLU may round to its other side
        assert np.linalg.norm(values[name] - value) < 2e-3 * np.linalg.norm(value), name


@pytest.mark.parametrize("fix_gamma, relu6", [(False, False), (True, False), (False, True)])
def test_a_frozen_convolution_and_its_gradient_by_hand(fix_gamma, relu6):
    """One image of one pixel, one channel in, three out; the ReLU6 is off, in between, and saturated."""
    convolution = mx.gluon.nn.Conv2D(3, 1, in_channels=1)
    norm = mx.gluon.nn.BatchNorm(in_channels=3, epsilon=0.25, scale=not fix_gamma)
    block = onednn.FrozenConvolution(convolution, onednn.BatchNormReLU6(norm, 3) if relu6 else norm)
    block.initialize()
    weight, bias = np.array([-3.0, 1, 9]), np.array([0.5, -1, 2])
    gamma, beta, mean = np.array([2.0, 3, 4]), np.array([0.25, 1, -1]), np.array([-1, 0.5, 3])
    convolution.weight.set_data(mx.nd.array(weight.reshape(3, 1, 1, 1)))
    for parameter, value in zip((convolution.bias, norm.gamma, norm.beta), (bias, gamma, beta)):
        parameter.set_data(mx.nd.array(value))
    norm.running_mean.set_data(mx.nd.array(mean))
    norm.running_var.set_data(mx.nd.array([0.75, 2, 3.75]))
    factor = (np.ones(3) if fix_gamma else gamma) / [1, 1.5, 2]
    linear = (weight * 2 + bias - mean) * factor + beta
    block.hybridize(static_alloc=True, static_shape=True)  # as the trainer does
    for _ in range(2):  # the second time in memory that has been used
        with mx.autograd.record():
            y = block(mx.nd.full((1, 1, 1, 1), 2))
        y.backward()
    expected = np.clip(linear, 0, 6) if relu6 else linear
    np.testing.assert_allclose(y.asnumpy().ravel(), expected, rtol=1e-5)
    passes = (linear > 0) & (linear < 6) if relu6 else np.ones(3)
    assert not relu6 or passes.tolist() == [False, True, False]
    np.testing.assert_allclose(convolution.weight.grad().asnumpy().ravel(), 2 * factor * passes, rtol=1e-5)
    np.testing.assert_allclose(convolution.bias.grad().asnumpy(), factor * passes, rtol=1e-5)


BACKBONES = ["resnet18_v1", "resnet18_v2", "mobilenetv2_0.25", "mobilenet0.25", "squeezenet1.1", "se_resnet50"]
BACKBONES += ["bn_inception", "shufflenet_v2"]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_inference_is_the_same(backbone, monkeypatch, capfd):
    taken, fastest = [], onednn.fastest
    monkeypatch.setattr(onednn, "fastest", lambda *graph: taken.append(fastest(*graph)) or taken[0])
    net = network(backbone)
    fast, expected = checkpoints.inference(net, mx.cpu(), (SIDE, SIDE)), net(pictures()).asnumpy()
    assert taken[0][2] == ({} if backbone == "se_resnet50" else {"backend": onednn.BACKEND})
    assert expected.std(axis=0).mean() > 1e-3  # they differ from one another
    np.testing.assert_allclose(fast(pictures()).asnumpy(), expected, atol=onednn.TOLERANCE / 12**0.5)
    assert {parameter.grad_req for parameter in fast.collect_params().values()} == {"null"}
    assert "notice" not in capfd.readouterr().err


def test_a_form_with_other_embeddings_is_not_taken_and_a_line_says_so(monkeypatch, capfd):
    net = network("mobilenet0.25", "M")
    fold = graphs.fold_batch_norm

    def fold_wrongly(symbol, values):
        symbol, values = fold(symbol, values)
        name = next(name for name in values if name.endswith("folded_bias"))
        return symbol, dict(values, **{name: values[name] + 0.01})

    monkeypatch.setattr(graphs, "fold_batch_norm", fold_wrongly)
    fast = checkpoints.inference(net, mx.cpu(), (SIDE, SIDE))
    np.testing.assert_array_equal(fast(pictures()).asnumpy(), net(pictures()).asnumpy())
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_images_that_a_network_shrinks_to_nothing_are_one_line():
    net = lively_network("alexnet", 128)
    with pytest.raises(InputError, match="images of 48 x 48 pixels are too small for this network"):
        checkpoints.inference(net, mx.cpu(), (48, 48))


@pytest.mark.parametrize("p, powers", [(3.0, 1), (2.5, 2)])
def test_gem_takes_no_powers_of_the_map_if_p_is_3(p, powers):
    net = network("resnet18_v1", "MG", gem_p=p)
    symbol, values = graphs.fold_batch_norm(*checkpoints._graph_of(net))
    faster = graphs.with_fast_gem(symbol, values)
    operators = [node["op"] for node in json.loads(faster.tojson())["nodes"]]
    assert operators.count("broadcast_power") == powers and operators.count("BatchNorm") == 0
    block = onednn._block(faster, values, mx.cpu())
    for side in (SIDE, 96):  # the number of places is not fixed
        np.testing.assert_allclose(block(pictures(2, side)).asnumpy(), net(pictures(2, side)).asnumpy(), atol=1e-6)


def test_gem_of_cubes_is_bounded_below():
    x = np.zeros((1, 2, 3, 3), np.float32)
    x[0, 1] = np.arange(9).reshape(3, 3) - 4
    found = mx.gluon.nn.HybridLambda(lambda F, x, p: onednn.GeM.of_cubes(F, x, p))(mx.nd.array(x), mx.nd.array([3.0]))
    expected = (np.maximum(x, 1e-6).astype(np.float64) ** 3).mean(axis=(2, 3)) ** (1 / 3)
    np.testing.assert_allclose(found.asnumpy()[..., 0, 0], expected, rtol=1e-6)


def test_a_convolution_with_two_users_keeps_its_batch_norm():
    x = mx.sym.var("data")
    convolution = mx.sym.Convolution(x, kernel=(1, 1), num_filter=4, name="conv")
    symbol = mx.sym.BatchNorm(convolution, fix_gamma=True, eps=1e-3, name="norm") + convolution
    arguments, _, states = symbol.infer_shape(data=(2, 3, 5, 5))
    shapes = dict(zip(symbol.list_arguments(), arguments), **dict(zip(symbol.list_auxiliary_states(), states)))
    random = np.random.RandomState(0)
    values = {n: mx.nd.array(random.uniform(0.5, 2, shape)) for n, shape in shapes.items() if n != "data"}
    for graph in (symbol, mx.sym.BatchNorm(convolution, fix_gamma=True, eps=1e-3, name="norm")):
        folded, new = graphs.fold_batch_norm(graph, values)
        kept = sum(node["op"] == "BatchNorm" for node in json.loads(folded.tojson())["nodes"])
        assert kept == (1 if graph is symbol else 0)
        x = mx.nd.array(random.randn(2, 3, 5, 5))
        expected = onednn._block(graph, values, mx.cpu())(x).asnumpy()
        np.testing.assert_allclose(onednn._block(folded, new, mx.cpu())(x).asnumpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.fixture
def saved(tmp_path):
    net = network("resnet18_v1", "MG", classes=5)
    prefix = str(tmp_path / "net")
    checkpoints.save(net, prefix, {"image_width": SIDE, "image_height": SIDE})
    return net, prefix


@needs_bfloat16
@pytest.mark.parametrize("backbone", BACKBONES if LONG else ["resnet18_v1", "shufflenet_v2"])
def test_bfloat16_is_close(backbone, tmp_path):
    net = network(backbone, "MG")
    checkpoints.save(net, str(tmp_path / "net"), {"image_width": SIDE, "image_height": SIDE})
    found = checkpoints.Checkpoint(tmp_path / "net").graph(mx.cpu(), dtype="bfloat16")(pictures()).asnumpy()
    expected = net(pictures()).asnumpy()
    similarity = (found * expected).sum(axis=1)
    # bfloat16 has 8 bits; mobilenetv2_0.25, of 54 layers with random weights, has 0.97
    assert found.dtype == np.float32 and similarity.min() > (0.95 if "mobilenet" in backbone else 0.998)
    assert np.abs(found - expected).max() > 1e-5  # more than the rounding of float32


def test_a_network_that_cannot_run_in_bfloat16_is_one_line(saved, monkeypatch):
    """As on a CPU without AVX-512: the error comes when the network first runs, and is raised when it is waited for."""
    from mxnet.contrib import amp

    class Broken(mx.operator.CustomOp):
        def forward(self, *arguments):
            raise ValueError("could not create a primitive descriptor iterator")

    @mx.operator.register("broken")
    class BrokenProperty(mx.operator.CustomOpProp):
        def create_operator(self, *arguments):
            return Broken()

    convert = amp.convert_model

    def convert_to_broken(symbol, *parameters, **more):
        return (mx.sym.Custom(symbol, op_type="broken"), *convert(symbol, *parameters, **more)[1:])

    monkeypatch.setattr(amp, "convert_model", convert_to_broken)
    with pytest.raises(InputError, match="--dtype float32"):
        checkpoints.Checkpoint(saved[1]).graph(mx.cpu(), dtype="bfloat16")


def test_only_the_descriptors_follow_the_last_pooling():
    """In SE-ResNet-50 each block has a global pooling, with a convolution after it."""
    symbol = model.CGD("SMG", 12, "se_resnet50")(mx.sym.var("data"))
    after = set(graphs.after_pooling(symbol))
    operators = [node["op"] for node in json.loads(symbol.tojson())["nodes"] if node["name"] in after]
    assert operators.count("Pooling") == operators.count("FullyConnected") == 3
    assert not {"Convolution", "BatchNorm", "broadcast_mul"} & set(operators)


@pytest.mark.parametrize("text, value", [("true", True), ("False", False), ("false", False), ("(1, 2)", (1, 2))])
def test_attributes_are_python_values_also_in_lower_case(text, value):
    assert graphs.attribute({"attrs": {"key": text}}, "key") == value


def test_bfloat16_is_for_cpus(saved):
    with pytest.raises(InputError, match="--gpu -1"):
        checkpoints.Checkpoint(saved[1]).graph(mx.gpu(0), dtype="bfloat16")


def test_a_learned_p_that_stays_where_it_was_is_not_taken_for_3():
    """As when a network that has learned its p is fine-tuned with a fixed one."""
    found = []
    for fast in (False, True):
        net = network("resnet18_v1", "G", classes=5, fast=fast)
        net.descriptors[0].p.set_data(mx.nd.array([2.0]))
        found.append(one_step(net)[0])
    np.testing.assert_allclose(*found, atol=1e-6)


@pytest.mark.parametrize("backbone", BACKBONES if LONG else ["resnet18_v1", "mobilenet0.25"])
def test_int8_is_close_and_is_a_checkpoint_like_any_other(backbone, tmp_path, monkeypatch):
    if not LONG:  # the search for the best range takes time that grows with the square of the histograms' bins
        collector = mx.contrib.quantization._LayerHistogramCollector
        monkeypatch.setattr(collector.__init__, "__defaults__", (1001, *collector.__init__.__defaults__[1:]))
    net = network(backbone, "MG", classes=5)
    prefix = str(tmp_path / "net")
    checkpoints.save(net, prefix, {"image_width": SIDE, "image_height": SIDE})
    # 6 images in batches of 4: the last one is used, too
    symbol, values, alike = int8.quantize_and_compare(checkpoints.Checkpoint(prefix), pictures(6), 4)
    prefix = str(tmp_path / "int8")
    checkpoints.write(prefix, symbol, values, {"dtype": "int8", "image_width": SIDE, "image_height": SIDE})
    nodes = json.loads(symbol.tojson())["nodes"]
    assert sum(map(graphs.is_quantized, nodes)) >= 20
    checkpoint = checkpoints.Checkpoint(prefix)
    found = checkpoint.graph(mx.cpu())(pictures(6)).asnumpy()
    similarity = (found * net.embed(pictures(6)).asnumpy()).sum(axis=1)
    np.testing.assert_allclose(alike[0], similarity, atol=1e-4)
    assert (alike[1] < alike[0]).all()
    assert 0.85 < similarity.min() and similarity.max() < 0.9999999
    for refused in (
        lambda: checkpoint.graph(mx.cpu(), dtype="bfloat16"),
        lambda: checkpoint.graph(mx.gpu(0)),
        lambda: checkpoint.load_into(net),
        lambda: onnx_graph.export(checkpoint),
    ):
        with pytest.raises(InputError, match=f"{prefix}: is in int8|int8 is for CPUs"):
            refused()
    checkpoints.write(prefix, symbol, values, {"image_width": SIDE, "image_height": SIDE})
    with pytest.raises(InputError, match="is in int8, but the dtype in .*int8.json is float32"):
        checkpoints.Checkpoint(prefix)


def test_similarities_without_the_mean_by_hand():
    """A network that describes all images alike is similar, and not so without what they share."""
    embeddings = np.array([[0.8, 0.6], [0.8, -0.6], [1.0, 0.0]])
    constant = np.array([[1.0, 0.0]] * 3)
    whole, rest = int8.similarities(embeddings, constant)
    np.testing.assert_allclose(whole, [0.8, 0.8, 1])
    x = 0.8 - 2.6 / 3
    np.testing.assert_allclose(rest, [x / np.hypot(x, 0.6), x / np.hypot(x, 0.6), 1])
    np.testing.assert_allclose(int8.similarities(embeddings, embeddings), 1)
    np.testing.assert_allclose(int8.similarities(constant, embeddings), [[0.8, 0.8, 1]] * 2)  # they are their mean


def a_convolution():
    """A graph of one convolution, its parameters, and 4 images for it."""
    x = mx.sym.Convolution(mx.sym.var("data"), kernel=(1, 1), num_filter=4, name="conv")
    symbol = mx.sym.Flatten(mx.sym.Activation(x, act_type="relu"))
    random = np.random.RandomState(0)
    values = {"conv_weight": mx.nd.array(random.randn(4, 3, 1, 1)), "conv_bias": mx.nd.array(random.randn(4))}
    return symbol, values, mx.io.NDArrayIter(pictures(4, 8), batch_size=2), (8, 8)


def test_all_images_give_the_ranges(monkeypatch):
    seen = []

    def collect(symbol, values, batches, size):
        seen.extend(batch.data[0].asnumpy() for batch in batches)
        raise InputError("enough")

    monkeypatch.setattr(int8, "quantize", collect)
    with pytest.raises(InputError, match="enough"):
        checkpoint = SimpleNamespace(symbol=None, arg_params={}, aux_params={})
        int8.quantize_and_compare(checkpoint, pictures(6, 8), batch_size=4)
    np.testing.assert_array_equal(np.concatenate(seen)[:6], pictures(6, 8).asnumpy())


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def run_out_of_memory():
    raise MemoryError("no room")


@pytest.mark.parametrize("what, error", [(interrupt, KeyboardInterrupt), (run_out_of_memory, MemoryError)])
def test_a_stop_and_an_error_in_the_calibration_are_not_lost(what, error, monkeypatch):
    collector = mx.contrib.quantization._LayerHistogramCollector
    collect = collector.collect
    monkeypatch.setattr(collector, "collect", lambda *arguments: (what(), collect(*arguments)))
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
    try:
        with pytest.raises(error):
            int8.quantize(*a_convolution())
    finally:
        signal.signal(signal.SIGINT, handler)


def operators_in_int8():
    """Symbols of MXNet's operators that quantise or compute in int8, by name."""
    var, contrib = mx.sym.var, mx.sym.contrib
    x, low, high = (var(name) for name in ("x", "low", "high"))
    one = (x, low, high)
    two = (x, var("y"), low, high, var("low_y"), var("high_y"))
    yield contrib.quantize(*one)
    yield contrib.quantize_v2(x)
    yield contrib.quantize_asym(x)
    yield contrib.requantize(*one)
    yield contrib.dequantize(*one)
    yield contrib.quantized_act(*one, act_type="relu")
    yield contrib.quantized_flatten(*one)
    yield contrib.quantized_pooling(*one, kernel=(2, 2))
    yield contrib.quantized_concat(*two, num_args=2)
    yield contrib.quantized_elemwise_add(*two)
    yield contrib.quantized_elemwise_mul(*two)
    yield contrib.quantized_elemwise_mul(*two, enable_float_output=True)
    yield contrib.quantized_conv(x, kernel=(1, 1), num_filter=2)
    yield contrib.quantized_fully_connected(x, num_hidden=2)


def test_outputs_of_operators_in_int8_are_counted_as_mxnet_does():
    for symbol in operators_in_int8():
        node = json.loads(symbol.tojson())["nodes"][-1]
        assert checkpoints._outputs(node) == len(symbol), node
