"""Speed of evaluation including data loading, relative to the forward pass alone.

    python benchmarks/pipeline.py

Extracts embeddings of generated images of CUB's typical size with ResNet-50, as test.py does. The end-to-end rate and
the forward rate are measured in pairs, in one process.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cgd.data import images  # noqa: E402
from cgd.data.datasets import Record  # noqa: E402
from cgd.network import model  # noqa: E402
from cgd.retrieval import evaluation  # noqa: E402
from cgd.system import environment, machine  # noqa: E402
from cgd.system.environment import mx  # noqa: E402

PREPROCESSING = evaluation.Preprocessing((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def draw(folder, count, width=500, height=375):
    """Records of images of blurred noise, which compresses to about the size of a photograph, with boxes."""
    random = np.random.RandomState(0)
    records = []
    for number in range(count):
        pixels = random.randint(0, 256, (height, width, 3)).astype(np.uint8)
        path = Path(folder) / f"{width}x{height}-{number}.jpg"
        Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(2)).save(str(path), quality=92)
        records.append(Record(str(path), 0, (width // 8, height // 8, width * 2 // 3, height * 2 // 3), number))
    return records


def forward_rate(net, ctx, batch_size, count):
    batch = mx.nd.random.uniform(shape=(batch_size, 3, 224, 224), ctx=ctx)
    net(batch).wait_to_read()
    start = time.time()
    for _ in range(count // batch_size):
        output = net(batch)
    output.wait_to_read()
    return count // batch_size * batch_size / (time.time() - start)


def end_to_end_rate(net, ctx, extractor, count):
    start = time.time()
    extractor(net, ctx, quiet=True)
    return count / (time.time() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--num-workers", type=int, default=machine.usable_cores())
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--gpu", type=int, default=-1)
    options = parser.parse_args()
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        records = draw(folder, options.images)
        # forks the loader processes, so it comes before the GPU is used
        extractor = evaluation.Extractor(records, PREPROCESSING, options.batch_size, options.num_workers)
        ctx = environment.context(options.gpu)
        net = model.CGD()
        net.initialize(ctx=ctx)
        net.hybridize(static_alloc=True, static_shape=True)
        size = sum(Path(record.path).stat().st_size for record in records) / len(records) / 1000
        start = time.time()
        for record in records[:64]:
            images.read_image(record.path)
        decoding = (time.time() - start) / len(records[:64]) * 1000
        print(f"{size:.0f} kB per image, {decoding:.1f} ms to decode it")
        for _ in range(options.pairs):
            forward = forward_rate(net, ctx, options.batch_size, options.images)
            end_to_end = end_to_end_rate(net, ctx, extractor, options.images)
            ratios.append(end_to_end / forward)
            print(f"forward {forward:6.1f} images/s   end to end {end_to_end:6.1f}   ratio {ratios[-1]:.3f}")
    print(f"median ratio {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
