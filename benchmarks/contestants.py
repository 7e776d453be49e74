"""A program that compare.py measures: it prepares itself, prints "ready", and then answers each line on its input.

    python benchmarks/contestants.py "cgd, float32" ResNet-50 FOLDER

A line holds a number of batches; the answer is the seconds that they took.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import networks  # noqa: E402

from cgd.system.machine import usable_cores  # noqa: E402

PICTURES, BATCH = 128, 32  # images that a program reads and describes in one run, where reading is measured
TOLERANCE = 1e-3  # of the descriptors of a runtime in float32, to be sure that it computes the same


class Files:
    """The files of networks.prepare."""

    def __init__(self, name, folder):
        self.network, self.folder = networks.NETWORKS[name], Path(folder) / name
        self.prefix, self.onnx = str(self.folder / "net"), str(self.folder / "net.onnx")
        self.pictures, self.descriptors = (np.load(str(self.folder / f"{n}.npy")) for n in ("pictures", "descriptors"))

    def batch(self):
        """(N, 3, H, W) float32, the batch that is measured."""
        return np.resize(self.pictures, (self.network.inference_batch, *self.pictures.shape[1:]))

    def records(self):
        """The records of image files of photographs' size, drawn where there are none."""
        return networks.draw(self.folder / "pictures", PICTURES)

    def check(self, descriptors):
        count = min(len(descriptors), len(self.descriptors))
        worst = np.abs(descriptors[:count] - self.descriptors[:count]).max()
        if worst > TOLERANCE:
            sys.exit(f"the descriptors differ by {worst:.1e}")

    def calibration(self):
        """Batches of one picture."""
        return [picture[None] for picture in self.pictures]


def cgd(files, dtype="float32", suffix=""):
    from cgd.network.checkpoints import Checkpoint
    from cgd.system.environment import mx

    graph, x = Checkpoint(files.prefix + suffix).graph(mx.cpu(), dtype=dtype), mx.nd.array(files.batch())
    if not suffix and dtype == "float32":
        files.check(graph(x).asnumpy())
    return lambda: graph(x).asnumpy()


def mxnet_executor(files, batch=None):
    """MXNet without this project: the graph bound as it is, as the authors' script does.

    Returns a function of a batch, by default the one that is measured.
    """
    from cgd.system.environment import mx

    symbol, arguments, states = mx.model.load_checkpoint(files.prefix, 0)
    x = files.batch()[:batch]
    executor = symbol.simple_bind(mx.cpu(), data=x.shape, grad_req="null")
    executor.copy_params_from(arguments, states)
    x = mx.nd.array(x)
    files.check(executor.forward(is_train=False, data=x)[0].asnumpy())
    return lambda x=x: executor.forward(is_train=False, data=x)[0].asnumpy()


def onnxruntime(files, int8=False):
    import onnxruntime

    file = str(files.folder / "onnxruntime-int8.onnx") if int8 else files.onnx
    if int8 and not os.path.exists(file):
        _quantize_for_onnxruntime(files, file)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    session, x = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"]), files.batch()
    if not int8:
        files.check(session.run(None, {"image": x})[0])
    return lambda: session.run(None, {"image": x})


def _quantize_for_onnxruntime(files, file):
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.batches = iter(files.calibration())

        def get_next(self):
            picture = next(self.batches, None)
            return None if picture is None else {"image": picture}

    prepared = file.replace(".onnx", "-prepared.onnx")
    quantization.quant_pre_process(files.onnx, prepared)
    kind = quantization.QuantType
    quantization.quantize_static(
        prepared,
        file,
        Reader(),
        op_types_to_quantize=["Conv", "Add"],  # the convolutions and their sums, as in cgd.quantize
        per_channel=True,
        activation_type=kind.QUInt8,
        weight_type=kind.QInt8,
    )


def openvino(files, precision="f32", int8=False):
    import openvino

    core, x = openvino.Core(), files.batch()
    file = str(files.folder / "openvino-int8.xml")
    if int8 and not os.path.exists(file):
        import nncf

        data = nncf.Dataset(files.calibration())
        openvino.save_model(
            nncf.quantize(core.read_model(files.onnx), data, subset_size=len(files.calibration())), file
        )
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    model = core.read_model(file if int8 else files.onnx)
    model.reshape({0: list(x.shape)})
    request = core.compile_model(model, "CPU", options).create_infer_request()
    if precision == "f32" and not int8:
        files.check(request.infer({0: x})[0])
    return lambda: request.infer({0: x})


def pytorch(files, dtype="float32"):
    import torch
    from torch_networks import CGD

    torch.set_num_threads(usable_cores())
    net = CGD(files.network.backbone, files.network.dim).eval().to(memory_format=torch.channels_last)
    counted = json.loads((files.folder / "counts.json").read_text())["parameters"]
    if sum(parameter.numel() for parameter in net.parameters()) != counted:
        sys.exit("PyTorch's network has another number of parameters")
    x = torch.from_numpy(files.batch()).contiguous(memory_format=torch.channels_last)

    def run():
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            return net(x)

    return run


def end_to_end(files, suffix=""):
    """The descriptors of image files, as test.py extracts them."""
    from cgd.network.checkpoints import Checkpoint
    from cgd.retrieval.evaluation import Extractor, Preprocessing
    from cgd.system.environment import mx

    recipe, size = networks.recipe(files.network), (files.network.size, files.network.size)
    extractor = Extractor(files.records(), Preprocessing(size, recipe.mean, recipe.std), BATCH, usable_cores())
    graph = Checkpoint(files.prefix + suffix).graph(mx.cpu())
    return lambda: extractor(graph, mx.cpu(), quiet=True)


def forward_alone(files, suffix=""):
    """The batches of `end_to_end`, without reading."""
    from cgd.network.checkpoints import Checkpoint
    from cgd.system.environment import mx

    graph, x = (
        Checkpoint(files.prefix + suffix).graph(mx.cpu()),
        mx.nd.array(np.resize(files.pictures, (BATCH, *files.pictures.shape[1:]))),
    )
    return lambda: [graph(x).asnumpy() for _ in range(PICTURES // BATCH)]


def reading_alone(files):
    """The files decoded, cropped and resized by as many processes as there are cores, without a network."""
    from cgd.data import images
    from cgd.data.loader import Loader

    view = images.EvalView(files.records(), (files.network.size, files.network.size))
    loader = Loader(view, BATCH, usable_cores())
    return lambda: [None for _ in loader.batches(images.eval_batches(PICTURES, BATCH))]


def decoding_alone(files):
    """The files decoded in one process, by the function that the authors' script uses."""
    from cgd.system.environment import mx

    paths = [record.path for record in files.records()]
    return lambda: [mx.image.imread(path).wait_to_read() for path in paths]


def authors_way(files):
    """The authors' script with its defaults: batches of 1, one loader process, and MXNet's number of threads."""
    os.environ["OMP_NUM_THREADS"] = str(max(1, usable_cores() // 2))  # MXNet's default
    from cgd.system.environment import mx

    recipe, size = networks.recipe(files.network), files.network.size
    transforms = mx.gluon.data.vision.transforms
    prepare = transforms.Compose(
        [transforms.Resize((size, size)), transforms.ToTensor(), transforms.Normalize(recipe.mean, recipe.std)]
    )
    records = files.records()

    class Pictures(mx.gluon.data.Dataset):
        def __len__(self):
            return len(records)

        def __getitem__(self, at):
            x, y, w, h = records[at].box
            return prepare(mx.image.imread(records[at].path)[y : y + h, x : x + w]), at

    loader = mx.gluon.data.DataLoader(Pictures(), batch_size=1, num_workers=1)
    forward = mxnet_executor(files, batch=1)
    return lambda: [forward(x) for x, _ in loader]


def training_batch(network):
    """(N, 3, H, W) uint8 and (N,) identities, 4 images of each."""
    shape = (network.training_batch, 3, network.size, network.size)
    return np.random.RandomState(0).randint(0, 256, shape).astype(np.uint8), np.arange(shape[0]) // 4


def cgd_step(files, fast=True, freeze=lambda net: None):
    from cgd.data.datasets import Dataset, Record
    from cgd.network import onednn
    from cgd.system.environment import mx, seed_everything
    from cgd.training import trainer
    from cgd.training.objective import Objective
    from cgd.training.optimiser import Optimiser

    seed_everything(0)
    if not fast:
        onednn.for_training = lambda net: None
    recipe = networks.recipe(files.network)
    records = [Record(None, number, None, number) for number in range(networks.CLASSES)]
    net = trainer.build(recipe, Dataset("none", records, records, (1,)), [mx.cpu()])
    freeze(net)
    objective, optimiser = Objective(net, recipe, [mx.cpu()]), Optimiser(net.collect_params(), recipe)
    pictures, identities = training_batch(files.network)
    pictures = mx.nd.array(pictures.transpose(0, 2, 3, 1), dtype="uint8")

    def step():
        objective.backward(pictures, identities)
        optimiser.step(0)
        mx.nd.waitall()

    return step


def frozen(net):
    from cgd.network import onednn

    net.freeze_batch_norm()
    onednn.fold_frozen_batch_norm(net)


def pytorch_step(files):
    import torch
    from torch_networks import CGD, Training

    torch.set_num_threads(usable_cores())
    torch.manual_seed(0)
    net = CGD(files.network.backbone, files.network.dim, networks.CLASSES).to(memory_format=torch.channels_last)
    training = Training(net, networks.recipe(files.network))
    pictures, identities = map(torch.from_numpy, training_batch(files.network))
    return lambda: training.step(pictures, identities)


INFERENCE = {
    "cgd, float32": cgd,
    "cgd, bfloat16": lambda files: cgd(files, "bfloat16"),
    "cgd, int8": lambda files: cgd(files, suffix="-int8"),
    "MXNet, the graph as it is": mxnet_executor,
    "PyTorch, float32": pytorch,
    "PyTorch, bfloat16": lambda files: pytorch(files, "bfloat16"),
    "onnxruntime, float32": onnxruntime,
    "onnxruntime, int8": lambda files: onnxruntime(files, int8=True),
    "OpenVINO, float32": openvino,
    "OpenVINO, bfloat16": lambda files: openvino(files, "bf16"),
    "OpenVINO, int8": lambda files: openvino(files, int8=True),
}
END_TO_END = {
    "test.py": end_to_end,
    "its forward passes alone": forward_alone,
    "test.py, int8": lambda files: end_to_end(files, "-int8"),
    "its forward passes alone, int8": lambda files: forward_alone(files, "-int8"),
    "reading alone, a process for each core": reading_alone,
    "decoding alone, one process": decoding_alone,
    "the authors' script": authors_way,
}
TRAINING = {
    "cgd": cgd_step,
    "cgd, without onednn.for_training": lambda files: cgd_step(files, fast=False),
    "cgd, batch norm frozen": lambda files: cgd_step(files, freeze=frozen),
    "the same, without onednn.fold_frozen_batch_norm": lambda files: cgd_step(
        files, freeze=lambda net: net.freeze_batch_norm()
    ),
    "PyTorch": pytorch_step,
}


def main():
    contestant, name, folder = sys.argv[1:]
    run = dict(INFERENCE, **END_TO_END, **TRAINING)[contestant](Files(name, folder))
    run()
    print("ready", flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            run()
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
