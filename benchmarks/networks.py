"""The networks that compare.py measures: as checkpoints for MXNet, and as ONNX files for the other runtimes.

The weights are random, because speed does not depend on them. The statistics of batch norm are those of pictures of
the demo set, and so are the ranges of int8.
"""

import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

CLASSES = 100  # training classes, as in CUB200


class Network(NamedTuple):
    backbone: str
    dim: int
    size: int  # side of the images, in pixels
    inference_batch: int
    training_batch: int


NETWORKS = {
    "ResNet-50": Network("resnet50_v1", 1536, 224, 16, 16),
    "MobileNetV2": Network("mobilenetv2_1.0", 1536, 224, 32, 16),
    "MobileNetV2, 112 px": Network("mobilenetv2_1.0", 1536, 112, 64, 64),
    "demo (ResNet-18, 48 px)": Network("resnet18_v1", 192, 48, 96, 96),
}


def recipe(network):
    from cgd.training import recipes

    side = network.size
    options = dict(backbone=network.backbone, dim=network.dim, image_width=side, image_height=side)
    return recipes.changed(recipes.RECIPES["cub200"], dict(options, resize_size=side * 9 // 8))


def pictures_of(folder, size, count):
    """(N, H, W, 3) uint8 NDArray of the demo set's training pictures."""
    from cgd.data import birds, datasets, images
    from cgd.data.loader import Loader

    if not (folder / "demo").exists():
        birds.draw_demo(folder / "demo", classes=32, images_per_class=8)
    records = datasets.load("demo", folder / "demo").train
    view = images.EvalView(records[:count], (size, size))
    return next(Loader(view, count).batches(images.eval_batches(count, count)))[0]


def prepare(name, folder):
    """Writes the files of a network into folder/NAME: the checkpoints net and net-int8, net.onnx, and pictures."""
    from cgd.data import images
    from cgd.network import checkpoints, int8, model, onnx_graph
    from cgd.system.environment import mx

    network, folder = NETWORKS[name], folder / name
    folder.mkdir(parents=True, exist_ok=True)
    prefix, size = str(folder / "net"), (network.size, network.size)
    mx.random.seed(0)
    pictures = pictures_of(folder.parent, network.size, 64)
    x = images.normalise(pictures, recipe(network).mean, recipe(network).std)
    net = model.CGD(dim=network.dim, backbone=network.backbone)
    net.initialize(mx.init.Xavier(magnitude=2))
    for first in range(0, 64, 16):  # the backward pass updates the running statistics
        with mx.autograd.record():
            embeddings = net(x[first : first + 16])
        embeddings.backward()
    description = {"image_width": network.size, "image_height": network.size, "dataset": "demo"}
    checkpoints.save(net, prefix, description)
    checkpoint = checkpoints.Checkpoint(prefix)
    values = dict(checkpoint.arg_params, **checkpoint.aux_params)
    batches = mx.io.NDArrayIter(x, batch_size=16)
    symbol, values = int8.quantize(checkpoint.symbol, values, batches, size)
    checkpoints.write(prefix + "-int8", symbol, values, dict(checkpoint.description, dtype="int8"))
    (folder / "net.onnx").write_bytes(onnx_graph.export(checkpoint).SerializeToString())
    np.save(str(folder / "pictures.npy"), x.asnumpy())
    np.save(str(folder / "descriptors.npy"), checkpoint.graph(mx.cpu())(x).asnumpy())
    counts = {"parameters": sum(value.size for value in values_of(checkpoint)), "flops": flops(checkpoint.symbol, size)}
    (folder / "counts.json").write_text(json.dumps(counts))


def draw(folder, count, width=500, height=375):
    """Records of images of blurred noise, which compresses to about the size of a photograph, with boxes.

    The default size is a common one in CUB-200-2011.
    """
    from PIL import Image, ImageFilter

    from cgd.data.datasets import Record

    folder.mkdir(exist_ok=True)
    random = np.random.RandomState(0)
    records = []
    for number in range(count):
        pixels = random.randint(0, 256, (height, width, 3)).astype(np.uint8)
        path = folder / f"{width}x{height}-{number}.jpg"
        Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(2)).save(str(path), quality=92)
        records.append(Record(str(path), 0, (width // 8, height // 8, width * 2 // 3, height * 2 // 3), number))
    return records


def values_of(checkpoint):
    """The learned parameters of a checkpoint; p of GeM is constant."""
    return [value for name, value in checkpoint.arg_params.items() if not name.endswith("gem0_p")]


def flops(symbol, size):
    """Floating-point operations of convolutions and Dense layers for an image, two for each multiplication.

    size : (W, H)
    """
    nodes = json.loads(symbol.tojson())["nodes"]
    internals = symbol.get_internals()
    shapes = dict(zip(internals.list_outputs(), internals.infer_shape(data=(1, 3, size[1], size[0]))[1]))
    total = 0
    for node in nodes:
        if node["op"] in ("Convolution", "FullyConnected"):
            weight = shapes[nodes[node["inputs"][1][0]]["name"]]
            total += 2 * int(np.prod(shapes[node["name"] + "_output"])) * int(np.prod(weight[1:]))
    return total


if __name__ == "__main__":
    prepare(sys.argv[1], Path(sys.argv[2]))
