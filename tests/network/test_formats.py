"""Weight files of other programs, written here by hand: what they contain, what is refused, and which names fit.

Also the safetensors that cgd.export writes.
"""

import hashlib
import json
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cgd import export
from cgd.network import backbones, checkpoints, formats, graphs, naming, weights
from cgd.system.environment import mx
from cgd.system.errors import InputError
from cgd.training import run
from conftest import lively_network

vision = mx.gluon.model_zoo.vision
VALUES = np.array([[0.5, -3.25, 1024], [2**-10, -0.0, 7]], np.float32)  # exact in 16 bits of either kind
SIDE = 32


def safetensors(arrays, **more):
    """The bytes of a file: {name: (type, shape, bytes)}."""
    header, values = dict(more), b""
    for name, (kind, shape, data) in arrays.items():
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [len(values), len(values) + len(data)]}
        values += data
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + values


def varint(number):
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)


def field(number, value):
    """A field of a protobuf message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def tensor(name, kind, shape, values, packed_dims=False):
    """ONNX's TensorProto; `values` is its last field."""
    dims = field(1, b"".join(map(varint, shape))) if packed_dims else b"".join(field(1, n) for n in shape)
    return field(5, dims + field(2, kind) + values + field(8, name.encode()))


def onnx(*tensors):
    """A model with these initialisers, between fields that do not matter."""
    graph = field(1, field(4, b"Conv")) + field(2, b"graph") + b"".join(tensors) + field(11, field(1, b"data"))
    return field(1, 7) + field(2, b"mxnet") + field(7, graph) + field(8, field(2, 12))


BFLOAT16 = (VALUES.view("<u4") >> 16).astype("<u2").tobytes()
BFLOAT16_INTEGERS = [0x3F00, 0xC050, 0x4480, 0x3A80, 0x8000, 0x40E0]
FLOAT16 = [0x3800, 0xC280, 0x6400, 0x1400, 0x8000, 0x4700]
UNPACKED = b"".join(varint(4 << 3 | 5) + value.tobytes() for value in VALUES.ravel())
GOOD = {
    "F32": safetensors({"a": ("F32", (2, 3), VALUES.tobytes())}, __metadata__={"format": "pt"}),
    "F64": safetensors({"a": ("F64", (2, 3), VALUES.astype("<f8").tobytes())}),
    "F16": safetensors({"a": ("F16", (2, 3), VALUES.astype("<f2").tobytes())}),
    "BF16": safetensors({"a": ("BF16", (2, 3), BFLOAT16)}),
    "counters": safetensors({"n": ("I64", (), bytes(8)), "a": ("F32", (2, 3), VALUES.tobytes())}),
    "onnx raw": onnx(tensor("a", 1, (2, 3), field(9, VALUES.tobytes()))),
    "onnx packed": onnx(tensor("a", 1, (2, 3), field(4, VALUES.tobytes()), packed_dims=True)),
    "onnx one by one": onnx(tensor("a", 1, (2, 3), UNPACKED)),
    "onnx float16": onnx(tensor("a", 10, (2, 3), field(9, VALUES.astype("<f2").tobytes()))),
    "onnx bfloat16": onnx(tensor("a", 16, (2, 3), field(9, BFLOAT16))),
    "onnx float16 as integers": onnx(tensor("a", 10, (2, 3), field(5, b"".join(map(varint, FLOAT16))))),
    "onnx float16 one by one": onnx(tensor("a", 10, (2, 3), b"".join(field(5, n) for n in FLOAT16))),
    "onnx bfloat16 as integers": onnx(tensor("a", 16, (2, 3), field(5, b"".join(map(varint, BFLOAT16_INTEGERS))))),
    "onnx float64": onnx(tensor("a", 11, (2, 3), field(10, VALUES.astype("<f8").tobytes()))),
    "onnx with an empty array": onnx(tensor("roi", 1, (0,), b""), tensor("a", 1, (2, 3), field(9, VALUES.tobytes()))),
    "onnx with shapes": onnx(
        tensor("n", 7, (1,), field(9, bytes(8))), tensor("a", 1, (2, 3), field(9, VALUES.tobytes()))
    ),
}


@pytest.mark.parametrize("kind", GOOD)
def test_the_arrays_of_a_file_are_read(tmp_path, kind):
    (tmp_path / "weights").write_bytes(GOOD[kind])
    found = formats.read(tmp_path / "weights")
    assert list(found) == ["a"] and found["a"].dtype == np.float32
    np.testing.assert_array_equal(found["a"].asnumpy(), VALUES)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_gluon_parameters_become_float32(tmp_path, dtype):
    mx.nd.save(str(tmp_path / "weights"), {"a": mx.nd.array(VALUES, dtype=dtype)})
    found = formats.read(tmp_path / "weights")["a"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.asnumpy(), VALUES)


BAD = {
    "empty": (b"", "no weights"),
    "text": (b"hello, I am no weights at all", "expected Gluon parameters, an ONNX model or safetensors"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "pointer of Git LFS"),
    "zip": (b"PK\3\4" + bytes(40), "zip archive or a PyTorch checkpoint"),
    "older torch": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "a PyTorch checkpoint of before version 1.6"),
    "keras": (b"\x89HDF\r\n\x1a\n", "HDF5"),
    "cut": (GOOD["F32"][:-1], "beyond the end"),
    "header cut": (GOOD["F32"][:40], "end of the header"),
    "header": (safetensors({}, a={"dtype": "F32"}), "data_offsets"),
    "negative": (safetensors({}, a={"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}), "does not follow"),
    "more": (GOOD["F32"] + b"x", "bytes, expected"),
    "overlap": (
        safetensors({"a": ("F32", (2,), bytes(8))}, b={"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}),
        "does not follow",
    ),
    "gap": (safetensors({}, a={"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}) + bytes(8), "does not follow"),
    "shape": (safetensors({"a": ("F32", (2, 2), VALUES.tobytes())}), "reshape"),
    "no floats": (safetensors({"n": ("I64", (), bytes(8))}), "no weights"),
    "onnx cut": (GOOD["onnx raw"][:-20], "unexpected end"),
    "onnx twice": (onnx(*[tensor("a", 1, (2, 3), field(9, VALUES.tobytes()))] * 2), "two initialisers have one name"),
    "onnx shape": (onnx(tensor("a", 1, (2, 2), field(9, VALUES.tobytes()))), "reshape"),
    "onnx nameless": (onnx(field(5, field(2, 1) + field(9, VALUES.tobytes()))), "truncated"),
    "onnx elsewhere": (onnx(tensor("a", 1, (2, 3), field(14, 1))), "a is in another file"),
    "onnx without values": (onnx(tensor("a", 1, (2, 3), b"")), "a has no values"),
    "onnx empty": (onnx(tensor("a", 1, (2, 0), b"")), "no weights"),
    "infinite": (safetensors({"a": ("F64", (1,), struct.pack("<d", 1e300))}), "a contains values that are not finite"),
    "params cut": (struct.pack("<QQQ", 0x112, 0, 1), "truncated"),
}


@pytest.mark.parametrize("kind", BAD)
def test_other_files_are_refused(tmp_path, kind):
    (tmp_path / "weights").write_bytes(BAD[kind][0])
    with pytest.raises(InputError, match="weights: .*" + BAD[kind][1]):
        formats.read(tmp_path / "weights")


@pytest.mark.parametrize("kind", ["F32", "onnx raw", "onnx packed"])
def test_every_beginning_of_a_file_is_refused_or_read(tmp_path, kind):
    """Wherever it is cut off: an InputError, or the array."""
    for length in range(0, len(GOOD[kind]), 3):
        (tmp_path / "weights").write_bytes(GOOD[kind][:length])
        try:
            np.testing.assert_array_equal(formats.read(tmp_path / "weights")["a"].asnumpy(), VALUES)
        except InputError:
            pass


# --- Names


def blank(names):
    """{name: array} of arrays that have the right number of dimensions, as far as it matters."""
    return {name: mx.nd.zeros((1, 1) if name.endswith("weight") else 1) for name in names}


def norm(prefix, gamma="gamma", beta="beta"):
    return [f"{prefix}.{part}" for part in (gamma, beta, "running_mean", "running_var")]


def blocks(prefix, bias=False):
    """A convolution and its batch norm in imgclsmob."""
    return [f"{prefix}.conv.weight", *([f"{prefix}.conv.bias"] if bias else []), *norm(f"{prefix}.bn")]


def names_of_torch():
    names = ["conv1.weight", *norm("bn1", "weight", "bias")]
    for stage, units in enumerate((3, 4, 6, 3), start=1):
        for unit in range(units):
            place = f"layer{stage}.{unit}"
            for number in (1, 2, 3):
                names += [f"{place}.conv{number}.weight", *norm(f"{place}.bn{number}", "weight", "bias")]
            if unit == 0:
                names += [f"{place}.downsample.0.weight", *norm(f"{place}.downsample.1", "weight", "bias")]
    return names + ["fc.weight", "fc.bias"]


def names_of_resnet(squeeze):
    names = blocks("features.0.conv")
    for stage, units in enumerate((3, 4, 6, 3), start=1):
        for unit in range(units):
            place = f"features.{stage}.{unit}"
            names += [name for number in (1, 2, 3) for name in blocks(f"{place}.body.conv{number}")]
            if squeeze:
                names += [f"{place}.se.conv{number}.{part}" for number in (1, 2) for part in ("weight", "bias")]
            names += blocks(f"{place}.identity_conv") if unit == 0 else []
    return names + ["output.1.weight", "output.1.bias"]


def names_of_bn_inception():
    names = [name for part in ("conv1", "conv2.conv1", "conv2.conv2") for name in blocks(f"features.0.{part}", True)]
    for stage, units in enumerate((2, 5, 3), start=1):
        for unit in range(units):
            ways = ["0.conv1", "0.conv2", "1.conv1", "1.conv2", "1.conv3"]
            if stage == 1 or unit > 0:
                ways = ["0", "1.conv1", "1.conv2", "2.conv1", "2.conv2", "2.conv3", "3.conv"]
            names += [name for way in ways for name in blocks(f"features.{stage}.{unit}.branches.{way}", True)]
    return names + ["output.1.weight", "output.1.bias"]


def names_of_shufflenet():
    names = blocks("features.0.conv") + blocks("features.4")
    for stage, units in enumerate((4, 8, 4), start=1):
        for unit in range(units):
            layers = ["compress_{}1", "dw_{}2", "expand_{}3"] + (["dw_{}4", "expand_{}5"] if unit == 0 else [])
            for layer in layers:
                place = f"features.{stage}.{unit}."
                names += [place + layer.format("conv") + ".weight", *norm(place + layer.format("bn"))]
    return names + ["output.1.weight", "output.1.bias"]


FOREIGN = {
    "resnet50_v1b": names_of_torch(),
    "resnet50_v1": names_of_resnet(False),
    "se_resnet50": names_of_resnet(True),
    "bn_inception": names_of_bn_inception(),
    "shufflenet_v2": names_of_shufflenet(),
}


@pytest.mark.parametrize("backbone", FOREIGN)
def test_names_of_other_programs_are_those_of_a_backbone(backbone):
    parameters, values = weights._matched(backbones.convolutions(backbone), naming.translated(blank(FOREIGN[backbone])))
    assert weights.differences(set(parameters), set(values)) == []


def test_names_of_other_programs_belong_to_the_right_layers():
    """By hand, those that the functional tests of test_peers.py cannot be run for everywhere."""
    pairs = {
        "layer3.5.bn2.weight": "layer3.5.bn2.gamma",
        "layer3.5.bn2.bias": "layer3.5.bn2.beta",
        "features.3.5.body.conv2.bn.beta": "6.5.body.4.beta",
        "features.2.0.identity_conv.conv.weight": "5.0.downsample.0.weight",
        "features.4.2.se.conv2.bias": "7.2.weigh.2.bias",
        "features.2.4.branches.3.conv.conv.weight": "11.ways.3.1.0.weight",
        "features.3.0.branches.1.conv3.bn.gamma": "12.ways.1.2.1.gamma",
        "features.2.7.expand_conv3.weight": "13.convolved.3.0.weight",
        "features.3.0.dw_bn4.gamma": "14.passing.1.gamma",
    }
    for name, ours in pairs.items():
        arrays = next(blank(names) for names in FOREIGN.values() if name in names)
        arrays[name] += 5
        assert (naming.translated(arrays)[ours].asnumpy() == 5).all(), name


def test_two_arrays_for_one_parameter_are_refused(tmp_path):
    mx.nd.save(str(tmp_path / "a.params"), blank(["features.0.weight", "0.weight"]))
    with pytest.raises(InputError, match="a.params: several arrays for one parameter"):
        weights.load_backbone(backbones.convolutions("mobilenet0.25"), tmp_path / "a.params")


@pytest.mark.parametrize(
    "name", ["features.4.0.x.weight", "².weight", "9" * 5000 + ".weight"], ids=["stage", "superscript", "long"]
)
def test_names_with_other_numbers_are_unknown(tmp_path, few_backbones, name):
    """A stage that the network lacks, a digit that is no number, and one that `int` refuses since Python 3.11."""
    arrays = {name: ("F32", (1,), bytes(4)), naming.BN_INCEPTION.mark: ("F32", (1,), bytes(4))}
    (tmp_path / "a.safetensors").write_bytes(safetensors(arrays))
    with pytest.raises(InputError, match="a.safetensors: .*(unknown|digits)"):
        weights.load_backbone(backbones.convolutions("bn_inception"), tmp_path / "a.safetensors")


def test_a_bias_before_batch_norm_moves_its_mean():
    random = np.random.RandomState(0)
    arrays, name = blank(FOREIGN["bn_inception"]), "features.2.1.branches.1.conv2."
    x, bias, mean = random.randn(3, 4, 1)
    arrays[name + "conv.bias"], arrays[name + "bn.running_mean"] = mx.nd.array(bias), mx.nd.array(mean)
    found = naming.translated(arrays)["8.ways.1.1.1.running_mean"].asnumpy()
    np.testing.assert_allclose(x - found, x + bias - mean, atol=1e-6)


FAMILIES = "alexnet densenet121 mobilenet0.25 mobilenetv2_0.25 resnet18_v1 resnet18_v2 squeezenet1.0 vgg11_bn"


@pytest.mark.parametrize("family", FAMILIES.split())
def test_every_network_of_the_zoo_by_all_kinds_of_names(family):
    """Whole or without the classifier; names of `save_parameters`, with a prefix of their own, or without it."""
    net = vision.get_model(family, prefix="another7_")
    features = backbones.convolutions(family)
    for part in (net, net.features):
        plain = part._collect_params_with_prefix()
        symbols = part.collect_params()
        kinds = [plain, symbols, {name[len("another7_") :]: p for name, p in symbols.items()}]
        for kind in kinds:
            arrays = {name: mx.nd.zeros([1] * len(p.shape)) for name, p in kind.items()}
            parameters, values = weights._matched(features, naming.translated(arrays))
            assert weights.differences(set(parameters), set(values)) == []


# --- Loading


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """(prefix of a checkpoint of CGD, its network, images)."""
    net = lively_network("mobilenet0.25", SIDE, config="MG")
    prefix = tmp_path_factory.mktemp("checkpoint") / "last"
    checkpoints.save(net, str(prefix), {})
    return prefix, net, mx.nd.array(np.random.RandomState(2).randn(2, 3, SIDE, SIDE))


@pytest.fixture
def few_backbones(monkeypatch):
    """Those of these tests: to build all takes two seconds."""
    few = ["resnet50_v1b", "mobilenet0.25", "resnet18_v1", "mobilenet0.5", "resnet50_v1"]
    assert {*few, "vgg19_bn"} < set(backbones.names())
    monkeypatch.setattr(backbones, "names", lambda: few)


def files_of(folder, prefix):
    """The backbone of a checkpoint in several files."""
    found = {name[4:]: value for name, value in mx.nd.load(f"{prefix}-0000.params").items() if "faenet" not in name}
    renamed = {name.replace("backbone0_", "mobilenet7_"): value for name, value in found.items()}
    tensors = [tensor(name, 1, value.shape, field(9, value.asnumpy().tobytes())) for name, value in renamed.items()]
    (folder / "a.onnx").write_bytes(onnx(*tensors))
    arrays = {name: ("F32", value.shape, value.asnumpy().tobytes()) for name, value in renamed.items()}
    (folder / "a.safetensors").write_bytes(safetensors(arrays))
    export.write_safetensors(checkpoints.Checkpoint(prefix), folder / "whole.safetensors")
    return [
        prefix,
        f"{prefix}-0000.params",
        *(folder / name for name in ("a.onnx", "a.safetensors", "whole.safetensors")),
    ]


def test_a_backbone_is_the_same_from_every_kind_of_file(tmp_path, checkpoint):
    prefix, net, images = checkpoint
    expected = net.features(images).asnumpy()
    assert expected.std(axis=0).max() > 0.1  # the images matter
    for file in files_of(tmp_path, prefix):
        features = backbones.convolutions("mobilenet0.25")
        weights.load_backbone(features, file)
        np.testing.assert_array_equal(features(images).asnumpy(), expected)


@pytest.mark.parametrize("magic", [b"\x80\x02", b"PK"])
def test_the_length_of_a_header_is_no_magic_number(tmp_path, magic):
    """A file of safetensors begins with it."""
    length = int.from_bytes(magic, "little")
    content = safetensors({"a": ("F32", (2,), bytes(8))})
    header = content[8 : 8 + int.from_bytes(content[:8], "little")].rstrip(b" ")
    (tmp_path / "a.safetensors").write_bytes(length.to_bytes(8, "little") + header.ljust(length) + bytes(8))
    assert formats.read(tmp_path / "a.safetensors")["a"].asnumpy().tolist() == [0, 0]


def test_a_file_of_another_backbone_says_which(checkpoint, few_backbones):
    features = backbones.convolutions("mobilenet0.5")
    with pytest.raises(InputError) as told:
        weights.load_backbone(features, checkpoint[0])
    assert "conv0_weight has shape (8, 3, 3, 3), expected (16, 0, 3, 3)" in str(told.value)
    assert "more of another shape; the file fits --backbone mobilenet0.25" in str(told.value)
    assert all(parameter._data is None for parameter in features.collect_params().values())


def test_a_file_of_resnet50_v1b_does_not_fit_resnet50_v1(tmp_path, few_backbones):
    """Their parameters could be mapped on one another, but the networks differ."""
    shapes = {name: p.shape for name, p in backbones.convolutions("resnet50_v1b")._collect_params_with_prefix().items()}
    arrays = {name: ("F32", [max(1, n) for n in shape], b"") for name, shape in shapes.items()}
    arrays = {name: (kind, shape, bytes(4 * int(np.prod(shape)))) for name, (kind, shape, _) in arrays.items()}
    (tmp_path / "a.safetensors").write_bytes(safetensors(arrays))
    with pytest.raises(InputError, match="lacks 297 .*unknown 265 .*the file fits --backbone resnet50_v1b$"):
        weights.load_backbone(backbones.convolutions("resnet50_v1"), tmp_path / "a.safetensors")


def test_the_stride_of_resnet50_v1b_is_in_the_3_x_3_convolution():
    """A block with stride 2, in numpy: 1 x 1, then 3 x 3 at every other place, then 1 x 1."""
    random = np.random.RandomState(0)
    block = backbones.BottleneckV1b(2, 2, shortcut=True)
    block.initialize()
    x = random.randn(1, 3, 6, 6)
    block(mx.nd.array(x))
    values = {}
    for name, parameter in block._collect_params_with_prefix().items():
        low = 0.5 if name.endswith(("gamma", "var")) else -1
        values[name] = random.uniform(low, 1, parameter.shape)
        parameter.set_data(mx.nd.array(values[name]))

    def batch_norm(x, name):
        gamma, beta, mean, variance = (values[part].reshape(-1, 1, 1) for part in norm(name))
        return (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta

    y = np.maximum(batch_norm(np.einsum("oi,ihw->ohw", values["conv1.weight"][..., 0, 0], x[0]), "bn1"), 0)
    padded = np.pad(y, ((0, 0), (1, 1), (1, 1)))
    y = sum(
        np.einsum(
            "oi,ihw->ohw", values["conv2.weight"][..., row, column], padded[:, row : row + 6 : 2, column::2][..., :3]
        )
        for row in range(3)
        for column in range(3)
    )
    y = np.maximum(batch_norm(y, "bn2"), 0)
    y = batch_norm(np.einsum("oi,ihw->ohw", values["conv3.weight"][..., 0, 0], y), "bn3")
    shortcut = np.einsum("oi,ihw->ohw", values["downsample.0.weight"][..., 0, 0], x[0, :, ::2, ::2])
    expected = np.maximum(y + batch_norm(shortcut, "downsample.1"), 0)
    np.testing.assert_allclose(block(mx.nd.array(x)).asnumpy()[0], expected, atol=1e-5)


def test_a_run_takes_weights_by_file_or_prefix_and_records_their_sha1(checkpoint):
    prefix, source, _ = checkpoint
    file = Path(f"{prefix}-0000.params")
    for given in (prefix, file):
        net = lively_network("mobilenet0.25", SIDE, config="MG")
        weight = net.features[0].weight
        weight.set_data(mx.nd.zeros(weight.shape))
        options = SimpleNamespace(from_scratch=False, pretrained_model=None, backbone_params=str(given))
        assert run.load_weights(net, options, None) == hashlib.sha1(file.read_bytes()).hexdigest()
        np.testing.assert_array_equal(weight.data().asnumpy(), source.features[0].weight.data().asnumpy())


# --- Writing


def test_written_safetensors_hold_a_checkpoint_and_say_how_it_is_used(tmp_path, checkpoint):
    """Read by hand."""
    checkpoint = checkpoints.Checkpoint(checkpoint[0])
    export.write_safetensors(checkpoint, tmp_path / "a.safetensors")
    data = (tmp_path / "a.safetensors").read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    header, end = json.loads(data[8:start]), 0
    said = header.pop("__metadata__")
    assert start % 8 == 0 and data[8:9] == b"{"
    assert (said["config"], said["dim"], said["std"]) == ('"MG"', "12", "[0.229, 0.224, 0.225]")
    assert said["batch_norm_eps"] == "1e-05" and all(isinstance(text, str) for text in said.values())
    assert list(header) == [*checkpoint.arg_params, *checkpoint.aux_params]
    for name, value in dict(checkpoint.arg_params, **checkpoint.aux_params).items():
        entry = header[name]
        first, length = entry["data_offsets"][0], entry["data_offsets"][1] - entry["data_offsets"][0]
        assert entry["dtype"] == "F32" and first == end and length == 4 * value.size  # no gaps
        end += length
        found = np.frombuffer(data, "<f4", value.size, start + first).reshape(entry["shape"])
        np.testing.assert_array_equal(found, value.asnumpy())
    assert start + end == len(data)


def test_a_gamma_that_batch_norm_ignores_is_written_as_1():
    x = mx.sym.BatchNorm(mx.sym.var("data"), name="a", fix_gamma=True)
    symbol = mx.sym.BatchNorm(x, name="b", fix_gamma=False)
    values = {name: mx.nd.array([3, 4]) for name in symbol.list_inputs()}
    found = graphs.with_fixed_gammas(symbol, values)
    assert {name for name in values if (found[name] != values[name]).asnumpy().any()} == {"a_gamma"}
    assert found["a_gamma"].asnumpy().tolist() == [1, 1]


@pytest.mark.parametrize(
    "words, told",
    [
        (["a.safetensors", "--fold"], "--fold, --dynamic-size and --with-preprocessing are for ONNX only"),
        (["a.npz"], "a.npz: expected a name that ends with .onnx or .safetensors"),
    ],
)
def test_what_safetensors_do_not_take_is_told(here, checkpoint, words, told):
    result = here("-m", "cgd.export", checkpoint[0], *words)
    assert result.returncode == 2 and told in result.stderr


@pytest.mark.parametrize("backbone", weights.OTHER_FILES)
def test_weights_that_the_zoo_lacks_are_looked_for_in_the_model_folder(tmp_path, monkeypatch, backbone):
    monkeypatch.setenv("MXNET_HOME", str(tmp_path))
    with pytest.raises(InputError, match=f"bash download.sh weights {backbone} .*--from-scratch"):
        weights.zoo_file(backbone)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / weights.OTHER_FILES[backbone]).touch()
    assert weights.zoo_file(backbone) == str(tmp_path / "models" / weights.OTHER_FILES[backbone])
