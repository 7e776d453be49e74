"""The exported ONNX model in onnxruntime, against MXNet. pip install onnx onnxruntime 'numpy<2'"""

import numpy as np
import pytest

from cgd.data import images
from cgd.network import checkpoints, onnx_graph
from cgd.system.environment import mx
from cgd.system.errors import InputError
from conftest import lively_network

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

SIDE = 64
OPTIONS = [{}, {"fold": True}, {"dynamic_size": True}, {"with_preprocessing": True}]


def saved(tmp_path, backbone, **options):
    net = lively_network(backbone, SIDE, **options)
    net(mx.nd.zeros((1, 3, SIDE, SIDE)))
    checkpoints.save(net, str(tmp_path / "net"), {"image_width": SIDE, "image_height": SIDE})
    return checkpoints.Checkpoint(tmp_path / "net")


def outputs(checkpoint, flags, side=SIDE):
    """The descriptors of MXNet's plain graph and of onnxruntime."""
    pictures = np.random.RandomState(0).randint(0, 256, (3, side, side, 3)).astype(np.uint8)
    description = checkpoint.description
    x = images.normalise(mx.nd.array(pictures, dtype="uint8"), description["mean"], description["std"])
    file = onnx_graph.export(checkpoint, **flags).SerializeToString()
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    given = pictures if flags.get("with_preprocessing") else x.asnumpy()
    executor = checkpoint.symbol.bind(
        mx.cpu(), dict(checkpoint.arg_params, data=x), aux_states=checkpoint.aux_params, grad_req="null"
    )
    expected = executor.forward()[0].asnumpy()
    assert expected.std(axis=0).mean() > 1e-3  # they differ from one another
    return expected, session.run(["descriptor"], {"image": given})[0]


@pytest.mark.parametrize("flags", OPTIONS, ids=str)
def test_the_descriptors_are_the_same(tmp_path, flags):
    checkpoint = saved(tmp_path, "mobilenetv2_0.25")
    for side in (SIDE, 96) if flags.get("dynamic_size") else (SIDE,):
        np.testing.assert_allclose(*outputs(checkpoint, flags, side), atol=1e-5)


@pytest.mark.parametrize(
    "backbone",
    ["resnet18_v2", "squeezenet1.0", "densenet121", "resnet50_v1b", "se_resnet50", "bn_inception", "shufflenet_v2"],
)
def test_every_kind_of_backbone(tmp_path, backbone):
    np.testing.assert_allclose(*outputs(saved(tmp_path, backbone), {"fold": True}), atol=1e-5)


@pytest.mark.parametrize("options", [{"fusion": "sum"}, {"architecture": "B"}, {"config": "G", "gem_p": 2.5}], ids=str)
def test_every_kind_of_combination(tmp_path, options):
    np.testing.assert_allclose(*outputs(saved(tmp_path, "resnet18_v1", **options), {}), atol=1e-5)


def test_the_model_says_how_images_are_prepared(tmp_path):
    made = onnx_graph.export(saved(tmp_path, "resnet18_v1"))
    said = {item.key: item.value for item in made.metadata_props}
    assert (said["image_width"], said["mean"], said["config"]) == (str(SIDE), "[0.485, 0.456, 0.406]", '"SMG"')
    assert [item.name for item in made.graph.input] == ["image"]
    assert [item.name for item in made.graph.output] == ["descriptor"]


def test_a_node_that_cannot_be_translated_is_named(tmp_path):
    symbol = mx.sym.erf(mx.sym.var("data"), name="strange")
    with pytest.raises(InputError, match="'strange' of type erf"):
        onnx_graph.translate(symbol, {}, (8, 8), {})
    with pytest.raises(InputError, match="height and width"):
        onnx_graph.export(saved(tmp_path, "shufflenet_v2"), dynamic_size=True)
