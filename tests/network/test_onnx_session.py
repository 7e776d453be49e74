"""test.py --runtime onnx, against MXNet; and, with a stand-in for onnxruntime, how it chooses the device."""

import hashlib
import json
import re
import sys
import types

import numpy as np
import pytest

import cgd
from cgd.data import images
from cgd.network import checkpoints, descriptions, onnx_graph, onnx_session
from cgd.network.onnx_session import CPU, CUDA
from cgd.retrieval import index
from cgd.system import machine
from cgd.system.environment import mx
from cgd.system.errors import InputError
from conftest import lively_network

SIDE = 64
NEEDS = "make test-peers installs onnx and onnxruntime"


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    """A checkpoint of the demo set whose descriptors differ by image."""
    net = lively_network("mobilenetv2_0.25", SIDE, config="MG")
    net(mx.nd.zeros((1, 3, SIDE, SIDE)))
    prefix = str(tmp_path_factory.mktemp("net") / "net")
    description = {"image_width": SIDE, "image_height": SIDE, "dataset": "demo", "cropped": False}
    checkpoints.save(net, prefix, dict(description, mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.25]))
    return prefix


@pytest.fixture
def evaluate(here, prefix, small_demo, tmp_path):
    """Runs test.py: evaluate(*words) -> (what it printed, its --results, its embeddings)."""

    def evaluate(*words):
        out = ["--results", tmp_path / "r.json", "--save-embeddings", tmp_path / "e.npz"]
        words = words if "--pretrained-model" in words else ("--pretrained-model", prefix, *words)
        result = here("test.py", "--data-dir", small_demo, "--gpu", -1, "--batch-size", 7, *out, *words)
        assert result.returncode == 0, result.stderr
        figures = json.loads((tmp_path / "r.json").read_text())
        return re.findall(r"^R@.*", result.stdout, re.MULTILINE), figures, np.load(tmp_path / "e.npz")["embeddings"]

    return evaluate


def test_the_recalls_are_those_of_mxnet(prefix, evaluate, tmp_path, monkeypatch):
    """Of a checkpoint with its pooled vectors, at another size, and of a file, for which onnx is not imported."""
    pytest.importorskip("onnx", reason=NEEDS)
    onnxruntime = pytest.importorskip("onnxruntime", reason=NEEDS)
    for words in (["--pooled"], ["--image-width", 96]):
        expected, plain, embeddings = evaluate(*words)
        found, figures, others = evaluate("--runtime", "onnx", *words)
        assert found == expected and figures["recall"] == plain["recall"] and figures["pooled"] == plain["pooled"]
        assert 0.1 < figures["recall"]["1"] < 0.9 and embeddings.std(axis=0).mean() > 1e-2
        np.testing.assert_allclose(others, embeddings, atol=1e-5)
    assert (figures["runtime"], figures["device"]) == ("onnx", CPU) and plain["runtime"] == "mxnet"
    assert figures["versions"] == dict(plain["versions"], onnxruntime=onnxruntime.__version__)

    model = onnx_graph.export(checkpoints.Checkpoint(prefix), dynamic_size=True).SerializeToString()
    (tmp_path / "net.onnx").write_bytes(model)
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert evaluate("--pretrained-model", tmp_path / "net.onnx", "--image-width", 96)[0] == expected


def test_models_of_other_images_are_refused(prefix, tmp_path):
    pytest.importorskip("onnx", reason=NEEDS)
    pytest.importorskip("onnxruntime", reason=NEEDS)
    checkpoint, file = checkpoints.Checkpoint(prefix), tmp_path / "a.onnx"
    for options, told in (({}, "is for images of 64 x 64"), ({"with_preprocessing": True}, "type tensor.uint8")):
        file.write_bytes(onnx_graph.export(checkpoint, **options).SerializeToString())
        assert descriptions.read_onnx(file) == {key: checkpoint.description[key] for key in descriptions.RELEASED}
        with pytest.raises(InputError, match=told):
            onnx_session.Network(str(file), -1).graph(mx.cpu(), (96, 64))
    file.write_bytes(b"text")
    with pytest.raises(InputError, match="a.onnx: onnxruntime cannot load the model"):
        onnx_session.Network(str(file), -1).graph(mx.cpu(), (64, 64))


class Session:
    """In place of onnxruntime.InferenceSession; `started` are the providers that work."""

    started, given = (CUDA, CPU), None

    def __init__(self, model, options, providers, enable_fallback):
        type(self).given = providers

    def get_providers(self):
        return list(self.started)

    def get_inputs(self):
        return [types.SimpleNamespace(name="image", type="tensor(float)", shape=["batch", 3, 8, 8])]

    def run(self, outputs, inputs):
        return [inputs["image"].sum(axis=(2, 3))]


@pytest.fixture
def gpus(monkeypatch):
    """gpus(count, providers): so many Hopper GPUs, and an onnxruntime with these providers."""

    def gpus(count, providers=(CUDA, CPU)):
        runtime = types.ModuleType("onnxruntime")
        runtime.get_available_providers = lambda: list(providers)
        runtime.InferenceSession, runtime.SessionOptions = Session, types.SimpleNamespace
        monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
        monkeypatch.setattr(machine, "open_driver", lambda: None)
        monkeypatch.setattr(machine, "gpu_capabilities", lambda driver: [(9, 0)] * count)

    return gpus


def test_a_gpu_is_used_by_its_number(gpus):
    gpus(2)
    x = mx.nd.random.uniform(shape=(2, 3, 8, 8))
    for number in (0, 1):
        found = onnx_session.Network("net.onnx", number).graph(mx.cpu(), (8, 8))(x)
        np.testing.assert_allclose(found.asnumpy(), x.sum(axis=(2, 3)).asnumpy(), rtol=1e-5)
        assert Session.given == [(CUDA, {"device_id": number, "use_tf32": 0}), CPU]
    assert onnx_session.Network("net.onnx", -1).provider == CPU
    with pytest.raises(InputError, match=r"--gpu 2: 2 GPU\(s\) found"):
        onnx_session.Network("net.onnx", 2)


def test_without_a_gpu_gpu_0_is_the_cpu_and_says_so(gpus, capsys):
    for count, providers, told in ((0, (CUDA, CPU), "0 GPU(s) found"), (1, (CPU,), "onnxruntime-gpu[cuda,cudnn]")):
        gpus(count, providers)
        assert onnx_session.Network("net.onnx", 0).provider == CPU
        assert told in capsys.readouterr().err
        with pytest.raises(InputError, match="--gpu 1: "):
            onnx_session.Network("net.onnx", 1)


def test_a_cuda_provider_that_does_not_start_is_an_error(gpus, monkeypatch):
    """onnxruntime itself would go on, on the CPU."""
    gpus(1)
    monkeypatch.setattr(Session, "started", (CPU,))
    with pytest.raises(InputError, match="--gpu 0: onnxruntime could not start its CUDA provider"):
        onnx_session.Network("net.onnx", 0).graph(mx.cpu(), (8, 8))


def test_memory_that_runs_out_in_onnxruntime_is_told(gpus, monkeypatch, prefix):
    from cgd.system.environment import memory_for

    def run(session, outputs, inputs):
        raise Exception("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 8")

    gpus(1)
    monkeypatch.setattr(Session, "run", run)
    with pytest.raises(InputError, match="out of memory; try less"), memory_for("try less"):
        onnx_session.Network("net.onnx", 0).graph(mx.cpu(), (8, 8))(mx.nd.zeros((1, 3, 8, 8)))


def metadata(**texts):
    """The bytes of an ONNX model without a graph: metadata_props is field 14, its keys 1 and values 2."""

    def field(number, value):
        return bytes([number << 3 | 2, len(value)]) + value

    return b"".join(field(14, field(1, key.encode()) + field(2, text.encode())) for key, text in texts.items())


WHOLE = {"dataset": '"demo"', "cropped": "false", "image_width": "32", "image_height": "48", "commit": "unknown"}
WHOLE.update(mean="[0.4, 0.5, 0.6]", std="[1, 1, 1]")


def test_a_model_describes_itself(tmp_path):
    (tmp_path / "a.onnx").write_bytes(metadata(**WHOLE))
    described = dict(dataset="demo", cropped=False, image_width=32, image_height=48, mean=[0.4, 0.5, 0.6])
    assert descriptions.read_onnx(tmp_path / "a.onnx") == dict(descriptions.RELEASED, **described, std=[1, 1, 1])


@pytest.mark.parametrize(
    "content, told",
    [
        (None, "No such file"),
        (b"text", "not an ONNX model"),
        (metadata(**WHOLE)[:-3], "not an ONNX model"),
        (metadata(**dict(WHOLE, std="[1, 1")), "not an ONNX model"),
        (metadata(mean="[0, 0, 0]"), "its metadata lack dataset, cropped, image_width"),
        (b"", "python -m cgd.export"),
        (metadata(**dict(WHOLE, image_width="0")), "image_width is 0"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_file_that_is_no_model_of_this_project_is_told(tmp_path, here, content, told):
    if content is not None:
        (tmp_path / "a.onnx").write_bytes(content)
    result = here("test.py", "--pretrained-model", tmp_path / "a.onnx")
    assert result.returncode == 2 and result.stderr.startswith("error: ") and told in result.stderr


@pytest.mark.parametrize(
    "words, told",
    [
        (["a.onnx", "--pooled"], "--pooled: an ONNX file has no pooled vectors"),
        (["a.onnx", "--runtime", "mxnet"], "--runtime mxnet: MXNet cannot run a.onnx"),
        (["net", "--runtime", "onnx", "--dtype", "bfloat16"], "--dtype bfloat16"),
    ],
    ids=str,
)
def test_flags_that_exclude_one_another(here, words, told):
    result = here("test.py", "--pretrained-model", *words)
    assert result.returncode == 2 and told in result.stderr


class Means(Session):
    """A network whose descriptor is the mean of each channel, scaled to length 1."""

    started = (CPU,)

    def get_inputs(self):
        return [types.SimpleNamespace(name="image", type="tensor(float)", shape=["batch", 3, 48, 32])]

    def run(self, outputs, inputs):
        means = inputs["image"].mean(axis=(2, 3))
        return [means / np.linalg.norm(means, axis=1, keepdims=True)]


def test_a_file_describes_pictures_and_searches_them(small_demo, tmp_path, here, gpus):
    """cgd.load, cgd.describe and cgd.search take it in place of a checkpoint; it has no maps for a page."""
    gpus(0)
    runtime = sys.modules["onnxruntime"]
    runtime.InferenceSession, runtime.__version__ = Means, "1"
    name = tmp_path / "net.onnx"
    name.write_bytes(metadata(**WHOLE, dim="3"))
    photos = sorted((small_demo / "images").glob("*/*.jpg"))
    vectors = cgd.load(name, gpu=-1).describe(photos)
    resized = [images.resize(images.read_image(path), (32, 48)).asnumpy() / 255 for path in photos]
    expected = np.array([picture.mean(axis=(0, 1)) - [0.4, 0.5, 0.6] for picture in resized])
    np.testing.assert_allclose(vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-4)
    words = ["--gpu", -1, "--num-workers", 0]
    result = here("-m", "cgd.describe", name, small_demo / "images", "-o", tmp_path / "i", *words)
    assert result.returncode == 0, result.stderr
    facts, _, stored = index.read(tmp_path / "i")
    np.testing.assert_allclose(stored, vectors, atol=1e-6)
    assert facts["checksum"] == hashlib.sha256(name.read_bytes()).hexdigest()
    result = here("-m", "cgd.search", tmp_path / "i", photos[3], "-k", 1, "--html", tmp_path / "p.html", *words)
    assert result.stdout.split()[-3:] == ["0.0000", "3", str(photos[3])], result.stderr
    assert "note: the page has no similarity maps" in result.stderr and "is no checkpoint" in result.stderr
