"""The exported ONNX model in onnxruntime and OpenVINO, against MXNet. pip install onnx onnxruntime 'numpy<2'"""

import shutil

import numpy as np
import pytest

from cgd.data import images
from cgd.network import backbones, checkpoints, onnx_graph
from cgd.system.environment import mx
from cgd.system.errors import InputError
from conftest import LONG, lively_network

onnx = pytest.importorskip("onnx", reason="no onnx here: make test-peers installs it")
onnxruntime = pytest.importorskip("onnxruntime", reason="no onnxruntime here: make test-peers installs it")

SIDE = 64
DATA = mx.sym.var("data")
OPTIONS = [{}, {"fold": True}, {"dynamic_size": True}, {"with_preprocessing": True}]

# One network of each structure; `make test-long` takes all that train.py --help names.
STRUCTURES = "alexnet densenet121 inceptionv3 mobilenet0.25 mobilenetv2_0.25 resnet18_v1 resnet18_v2 resnet50_v1"
STRUCTURES += " resnet50_v1b se_resnet50 bn_inception shufflenet_v2 squeezenet1.0 vgg11 vgg11_bn"
LARGER = {"alexnet": 128, "inceptionv3": 128}  # sides of the images of networks that need more than 64 pixels


def saved(tmp_path, backbone, **options):
    side = LARGER.get(backbone, SIDE)
    net = lively_network(backbone, side, **options)
    net(mx.nd.zeros((1, 3, side, side)))
    checkpoints.save(net, str(tmp_path / "net"), {"image_width": side, "image_height": side})
    return checkpoints.Checkpoint(tmp_path / "net")


def in_onnxruntime(model, images):
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(["descriptor"], {"image": images})[0]


def in_openvino(model, images):
    openvino = pytest.importorskip("openvino", reason="no openvino here: make test-peers installs it")
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled({"image": images})["descriptor"]


def outputs(checkpoint, flags, side=None, run=in_onnxruntime):
    """The descriptors of MXNet's plain graph and of another runtime."""
    side = side or checkpoint.description["image_width"]
    pictures = np.random.RandomState(0).randint(0, 256, (3, side, side, 3)).astype(np.uint8)
    description = checkpoint.description
    x = images.normalise(mx.nd.array(pictures, dtype="uint8"), description["mean"], description["std"])
    file = onnx_graph.export(checkpoint, **flags).SerializeToString()
    given = pictures if flags.get("with_preprocessing") else x.asnumpy()
    executor = checkpoint.symbol.bind(
        mx.cpu(), dict(checkpoint.arg_params, data=x), aux_states=checkpoint.aux_params, grad_req="null"
    )
    expected = executor.forward()[0].asnumpy()
    assert expected.std(axis=0).mean() > 0.005 / np.sqrt(expected.shape[1])  # they differ from one another
    return expected, run(file, given)


@pytest.mark.parametrize("flags", OPTIONS, ids=str)
def test_the_descriptors_are_the_same(tmp_path, flags):
    checkpoint = saved(tmp_path, "mobilenetv2_0.25")
    for side in (SIDE, 96) if flags.get("dynamic_size") else (SIDE,):
        np.testing.assert_allclose(*outputs(checkpoint, flags, side), atol=1e-5)


@pytest.mark.parametrize("backbone", backbones.names() if LONG else STRUCTURES.split())
def test_every_kind_of_backbone(tmp_path, backbone):
    np.testing.assert_allclose(*outputs(saved(tmp_path, backbone), {"fold": True}), atol=1e-4 if LONG else 1e-5)


@pytest.mark.parametrize("run", [in_onnxruntime, in_openvino])
def test_the_released_graph(tmp_path, shared, run):
    """As the released checkpoint: no description, images of 224 pixels. The names of parameters are the same."""
    saved(tmp_path, "resnet50_v1", config="MG", dim=1536)
    shutil.copy(next((shared / "paper").glob("*-symbol.json")), tmp_path / "net-symbol.json")
    (tmp_path / "net.json").unlink()
    expected, found = outputs(checkpoints.Checkpoint(tmp_path / "net"), {}, run=run)
    assert found.shape == (3, 1536)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [{"fusion": "sum"}, {"architecture": "A"}, {"architecture": "B"}, {"config": "MG"}, {"config": "G", "gem_p": 2.5}],
    ids=str,
)
def test_every_kind_of_combination(tmp_path, options):
    np.testing.assert_allclose(*outputs(saved(tmp_path, "resnet18_v1", **options), {}), atol=1e-5)


def test_the_model_says_how_images_are_prepared(tmp_path):
    made = onnx_graph.export(saved(tmp_path, "resnet18_v1"))
    said = {item.key: item.value for item in made.metadata_props}
    assert (said["image_width"], said["mean"], said["config"]) == (str(SIDE), "[0.485, 0.456, 0.406]", '"SMG"')
    assert {"gem_p", "learn_p", "dense_bias", "last_stride"} <= set(said)  # or a reader takes the released model's
    assert [item.name for item in made.graph.input] == ["image"]
    assert [item.name for item in made.graph.output] == ["descriptor"]


def test_the_epsilon_of_the_length_is_the_graphs():
    symbol = mx.sym.FullyConnected(DATA, num_hidden=5, no_bias=True, name="dense")
    symbol = mx.sym.L2Normalization(symbol, mode="instance", eps=100, name="unit")
    random = np.random.RandomState(0)
    x, weight = random.randn(2, 3, 8, 8).astype(np.float32), random.randn(5, 3 * 8 * 8).astype(np.float32)
    file = onnx_graph.translate(symbol, {"dense_weight": mx.nd.array(weight)}, (8, 8), {}).SerializeToString()
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    vectors = x.reshape(2, -1).astype(np.float64) @ weight.T
    expected = vectors / np.sqrt((vectors**2).sum(axis=1, keepdims=True) + 100)
    np.testing.assert_allclose(session.run(None, {"image": x})[0], expected, rtol=1e-5)


CHANNELS = mx.sym.split(DATA, num_outputs=3, name="channel")
REFUSED = {
    "'wide' of type FullyConnected .*flatten": mx.sym.FullyConnected(DATA, num_hidden=2, flatten=False, name="wide"),
    "output 0 of the node 'second'": mx.sym.Group([mx.sym.relu(DATA), mx.sym.relu(DATA, name="second")]),
    "output 1 of the node 'channel'": CHANNELS[1],
    "output 0 of the node 'channel'": CHANNELS[0],
    "the node 'image' has the name": mx.sym.relu(mx.sym.relu(DATA, name="image")),
    "the node 'descriptor' has the name": mx.sym.relu(DATA, name="descriptor"),
    "not valid ONNX": mx.sym.relu(mx.sym.relu(DATA, name="same"), name="same"),
}


@pytest.mark.parametrize("told", REFUSED)
def test_what_would_be_translated_wrongly_is_refused(told):
    symbol = REFUSED[told]
    values = {"wide_weight": mx.nd.ones((2, 8)), "wide_bias": mx.nd.ones(2)} if "wide" in told else {}
    with pytest.raises(InputError, match=told):
        onnx_graph.translate(symbol, values, (8, 8), {})


def test_a_node_that_cannot_be_translated_is_named(tmp_path):
    symbol = mx.sym.erf(mx.sym.var("data"), name="strange")
    with pytest.raises(InputError, match="'strange' of type erf"):
        onnx_graph.translate(symbol, {}, (8, 8), {})
    with pytest.raises(InputError, match="height and width"):
        onnx_graph.export(saved(tmp_path, "shufflenet_v2"), dynamic_size=True)
