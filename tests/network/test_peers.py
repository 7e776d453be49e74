"""ImageNet weights of other programs: networks in these programs, with random weights, against the backbones here.

The same images must give the same feature map. `make test-peers` installs what this needs: requirements-peers.txt.
"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from cgd.network import backbones, formats, weights
from cgd.system.environment import mx

IMAGES = np.random.RandomState(0).randn(2, 3, 64, 64).astype(np.float32)
VECTORS = {"weight": (0.7, 1.3), "gamma": (0.7, 1.3), "running_var": (0.7, 1.3)}  # their ranges; others are around 0


def package(name):
    return pytest.importorskip(name, reason=f"no {name} here: make test-peers installs it")


def random_value(random, name, shape):
    """Random values with which a map does not fade with depth. In PyTorch, gamma is called weight."""
    if len(shape) > 1:
        return (random.uniform(-1, 1, shape) * np.sqrt(6 / np.prod(shape[1:]))).astype(np.float32)
    return random.uniform(*VECTORS.get(name.rpartition(".")[2], (-0.2, 0.2)), shape).astype(np.float32)


def assert_same_map(backbone, file, expected):
    """The backbone with the file's weights, and with the published strides, gives the map."""
    features = backbones.convolutions(backbone, last_stride=2)
    weights.load_backbone(features, file)
    found, unit = features(mx.nd.array(IMAGES)).asnumpy(), expected.std()
    assert np.abs(expected[0] - expected[1]).mean() > 0.03 * unit  # the images matter
    np.testing.assert_allclose(found / unit, expected / unit, atol=1e-4)


# --- PyTorch: torchvision and timm, in safetensors


def resnet50_of_torch(torch):
    """ResNet-50 without its pooling and classifier, in the structure and with the names of torchvision and timm."""
    nn = torch.nn

    class Bottleneck(nn.Module):
        def __init__(self, inside, channels, stride):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(inside, channels, 1, bias=False), nn.BatchNorm2d(channels)
            self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
            self.bn2, self.bn3 = nn.BatchNorm2d(channels), nn.BatchNorm2d(4 * channels)
            self.conv3 = nn.Conv2d(channels, 4 * channels, 1, bias=False)
            self.downsample = None
            if inside != 4 * channels:
                layers = nn.Conv2d(inside, 4 * channels, 1, stride, bias=False), nn.BatchNorm2d(4 * channels)
                self.downsample = nn.Sequential(*layers)

        def forward(self, x):
            y = torch.relu(self.bn1(self.conv1(x)))
            y = torch.relu(self.bn2(self.conv2(y)))
            return torch.relu(self.bn3(self.conv3(y)) + (self.downsample(x) if self.downsample else x))

    net, inside = nn.Sequential(), 64
    net.add_module("conv1", nn.Conv2d(3, 64, 7, 2, 3, bias=False))
    net.add_module("bn1", nn.BatchNorm2d(64))
    net.add_module("relu", nn.ReLU())
    net.add_module("maxpool", nn.MaxPool2d(3, 2, 1))
    for stage, (channels, units) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), start=1):
        layer = nn.Sequential()
        for unit in range(units):
            layer.append(Bottleneck(inside, channels, 2 if unit == 0 and stage > 1 else 1))
            inside = 4 * channels
        net.add_module(f"layer{stage}", layer)
    return net.eval()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_resnet50_of_torchvision_and_timm(tmp_path, dtype):
    torch, safetensors = package("torch"), package("safetensors.torch")
    net, random, dtype = resnet50_of_torch(torch), np.random.RandomState(1), getattr(torch, dtype)
    state = net.state_dict()
    for name, value in state.items():
        if value.is_floating_point():
            value.copy_(torch.from_numpy(random_value(random, name, tuple(value.shape))).to(dtype))
    whole = dict(state, **{"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)})
    whole = {name: value.to(dtype) if value.is_floating_point() else value for name, value in whole.items()}
    assert len(whole) == 320  # as in both libraries, with 53 num_batches_tracked
    safetensors.save_file(whole, str(tmp_path / "a.safetensors"), metadata={"format": "pt"})
    with torch.no_grad():
        expected = net(torch.from_numpy(IMAGES)).numpy()
    assert_same_map("resnet50_v1b", tmp_path / "a.safetensors", expected)


def test_the_package_reads_the_safetensors_that_are_written(tmp_path):
    opened, random = package("safetensors").safe_open, np.random.RandomState(0)
    arrays = {name: mx.nd.array(random.randn(*shape)) for name, shape in {"a": (3,), "b": (2, 3, 1, 5)}.items()}
    formats.write_safetensors(tmp_path / "a.safetensors", arrays, {"config": "MG"})
    with opened(str(tmp_path / "a.safetensors"), "np") as file:
        assert file.metadata() == {"config": "MG"} and set(file.keys()) == set(arrays)
        for name, value in arrays.items():
            np.testing.assert_array_equal(file.get_tensor(name), value.asnumpy())


# --- Gluon: GluonCV and imgclsmob, in their own .params


def gluon_file(file, net):
    """Saves a network of Gluon with random weights."""
    random = np.random.RandomState(1)
    net.initialize()
    net(mx.nd.array(IMAGES))
    for name, parameter in net._collect_params_with_prefix().items():
        parameter.set_data(mx.nd.array(random_value(random, name, parameter.shape)))
    net.save_parameters(str(file))


@pytest.mark.parametrize("name, file", [("resnet50_v1", "resnet.py"), ("resnet50_v1b", "resnetv1b.py")])
def test_networks_of_gluoncv(tmp_path, name, file):
    """By the one file of GluonCV that defines each: the package refuses to be imported beside a current PyTorch."""
    if not importlib.util.find_spec("gluoncv"):
        pytest.skip("no gluoncv here: make test-peers installs it")
    folder = Path(importlib.util.find_spec("gluoncv").submodule_search_locations[0])
    spec = importlib.util.spec_from_file_location("of_gluoncv", str(folder / "model_zoo" / file))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    net, x = getattr(module, name)(), mx.nd.array(IMAGES)
    gluon_file(tmp_path / "a.params", net)
    layers = list((net.features if name == "resnet50_v1" else net)._children.values())
    for layer in layers[:8]:  # convolution, batch norm, ReLU, pooling, four stages
        x = layer(x)
    assert_same_map(name, tmp_path / "a.params", x.asnumpy())


@pytest.mark.parametrize(
    "backbone, module, name",
    [
        ("resnet50_v1", "resnet", "resnet50"),
        ("se_resnet50", "seresnet", "seresnet50"),
        ("bn_inception", "bninception", "bninception"),
        ("shufflenet_v2", "shufflenetv2", "shufflenetv2_w1"),
    ],
)
def test_networks_of_imgclsmob(tmp_path, backbone, module, name):
    package("gluoncv2")
    net, x = getattr(importlib.import_module("gluoncv2.models." + module), name)(), mx.nd.array(IMAGES)
    net.features._children.popitem()  # the average pool, for images of 224 pixels
    net.output = mx.gluon.nn.HybridSequential()
    net.output.add(mx.gluon.nn.Flatten(), mx.gluon.nn.Dense(10))
    gluon_file(tmp_path / "a.params", net)
    assert_same_map(backbone, tmp_path / "a.params", net.features(x).asnumpy())


# --- ONNX


def onnx_resnet50(raw):
    """ResNet-50 v1 with random weights, as the ONNX model zoo's: an onnx.ModelProto with the names that Gluon gives.

    raw : values are stored as bytes, not as numbers
    """
    onnx, random = package("onnx"), np.random.RandomState(1)
    nodes, initialisers = [], []

    def weight(name, *shape):
        value = random_value(random, name.replace("_running", ".running").replace("_gamma", ".gamma"), shape)
        data = value.tobytes() if raw else value.ravel()
        initialisers.append(onnx.helper.make_tensor("resnetv17_" + name, onnx.TensorProto.FLOAT, shape, data, raw=raw))
        return initialisers[-1].name

    def add(op, *inputs, **attributes):
        nodes.append(onnx.helper.make_node(op, inputs, [f"output{len(nodes)}"], **attributes))
        return nodes[-1].output[0]

    def convolved(x, place, number, inside, outside, kernel=1, stride=1, bias=False):
        """A convolution and its batch norm."""
        values = [weight(f"{place}conv{number}_weight", outside, inside, kernel, kernel)]
        values += [weight(f"{place}conv{number}_bias", outside)] if bias else []
        pads = [kernel // 2] * 4
        x = add("Conv", x, *values, kernel_shape=[kernel, kernel], strides=[stride, stride], pads=pads)
        parts = ("gamma", "beta", "running_mean", "running_var")
        norm = [weight(f"{place}batchnorm{number}_{part}", outside) for part in parts]
        return add("BatchNormalization", x, *norm, epsilon=1e-5)

    x = add("Relu", convolved("data", "", 0, 3, 64, 7, 2))
    x = add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    inside = 64
    for stage, (channels, units) in enumerate(((256, 3), (512, 4), (1024, 6), (2048, 3)), start=1):
        place, number = f"stage{stage}_", 0
        for unit in range(units):
            stride = 2 if stage > 1 and unit == 0 else 1
            y = add("Relu", convolved(x, place, number, inside, channels // 4, 1, stride, bias=True))
            y = add("Relu", convolved(y, place, number + 1, channels // 4, channels // 4, 3))
            y = convolved(y, place, number + 2, channels // 4, channels, bias=True)
            number += 3
            if unit == 0:
                x = convolved(x, place, number, inside, channels, 1, stride)
                number += 1
            x, inside = add("Relu", add("Add", y, x)), channels
    weight("dense0_weight", 1000, 2048)
    weight("dense0_bias", 1000)
    initialisers.append(onnx.helper.make_tensor("shape_tensor", onnx.TensorProto.INT64, [2], [0, -1]))
    value = onnx.helper.make_tensor_value_info
    inputs = [value("data", onnx.TensorProto.FLOAT, IMAGES.shape)]
    graph = onnx.helper.make_graph(nodes, "net", inputs, [value(x, onnx.TensorProto.FLOAT, None)], initialisers)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 12)], ir_version=7)


@pytest.mark.parametrize("raw", [True, False])
def test_resnet50_v1_in_onnx(tmp_path, raw):
    onnxruntime = package("onnxruntime")
    content = onnx_resnet50(raw).SerializeToString()
    (tmp_path / "resnet50-v1-7.onnx").write_bytes(content)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    assert_same_map("resnet50_v1", tmp_path / "resnet50-v1-7.onnx", session.run(None, {"data": IMAGES})[0])


@pytest.mark.parametrize("kind", ["FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 1, 200)], ids=str)
def test_initialisers_are_those_of_the_onnx_package(tmp_path, kind, shape):
    onnx = package("onnx")
    number = getattr(onnx.TensorProto, kind)
    values = np.asarray(np.random.RandomState(0).randn(*shape)).astype(onnx.helper.tensor_dtype_to_np_dtype(number))
    made = onnx.numpy_helper.from_array(values, "an.array")
    model = onnx.helper.make_model(onnx.helper.make_graph([], "net", [], [], [made]))
    onnx.save(model, str(tmp_path / "a.onnx"))
    found = formats.read(tmp_path / "a.onnx")
    assert list(found) == ["an.array"] and found["an.array"].shape == (shape or (1,))
    np.testing.assert_array_equal(found["an.array"].asnumpy().reshape(shape), values.astype(np.float32))
