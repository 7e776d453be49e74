"""Speed of data loading for training, by image size and number of loader processes or threads.

    python benchmarks/loader.py

Each rate is also given relative to decoding the same files on one core, measured just before. Images are generated.
train.py uses the processes of cgd.data.loader; the threads are those of Gluon's DataLoader.
"""

import argparse
import sys
import tempfile
import time
from itertools import islice, product
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from networks import draw  # noqa: E402

from cgd.data import flags, images, samplers  # noqa: E402
from cgd.data.loader import AHEAD, Loader  # noqa: E402
from cgd.system import machine  # noqa: E402
from cgd.system.environment import mx  # noqa: E402


def decode_rate(records):
    start = time.time()
    for record in records:
        images.read_image(record.path)
    return len(records) / (time.time() - start)


def stack(samples):
    pictures, identities, _ = zip(*samples)
    return mx.nd.array(np.stack(pictures), dtype="uint8"), np.array(identities)


def loader_rate(records, workers, threads, batches, batch_size):
    """Images per second in the steady state, without the start of the workers, which a training run does once.

    Both loaders prefetch AHEAD batches per worker.
    """
    identities = [record.identity for record in records]
    sampler = samplers.IdentitySampler(identities, batch_size, 4, 0, batches + 1 + AHEAD * workers)
    view = images.TrainingView(records, (224, 224), (252, 252))
    if threads:
        load = mx.gluon.data.DataLoader
        loaded = iter(load(view, batch_sampler=sampler, batchify_fn=stack, num_workers=workers, thread_pool=True))
    else:
        loaded = Loader(view, batch_size, workers).batches(sampler)
    next(loaded)
    start = time.time()
    count = sum(len(batch[1]) for batch in islice(loaded, batches))
    rate = count / (time.time() - start)
    for _ in loaded:  # prefetched batches would slow down the next measurement
        pass
    return rate


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=flags.whole(1), default=8)
    parser.add_argument("--batch-size", type=flags.whole(1), default=64)
    parser.add_argument("--num-workers", type=flags.ranks, default=tuple(range(1, machine.usable_cores() + 1)))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for width, height in ((160, 120), (500, 375), (1000, 750)):
            records = [
                record._replace(identity=number // 4, box=None)
                for number, record in enumerate(draw(Path(folder), 128, width, height))
            ]
            for kind, workers in [("processes", 0), *product(["processes", "threads"], options.num_workers)]:
                bare = decode_rate(records)
                rate = loader_rate(records, workers, kind == "threads", options.batches, options.batch_size)
                relative = f"{rate / bare:.2f} of decoding on one core ({bare:.1f})"
                print(f"{width} x {height}, {workers} {kind}: {rate:6.1f} images/s, {relative}", flush=True)


if __name__ == "__main__":
    main()
