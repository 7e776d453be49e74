"""Rate of training batches, by image size and number of loader processes.

    python benchmarks/loader.py

Each figure is a ratio to the bare decoding of the same files by one core, measured right before it. The images are
drawn.
"""

import argparse
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

from pipeline import draw

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cgd.data import flags, images, samplers  # noqa: E402
from cgd.data.loader import AHEAD, Loader  # noqa: E402
from cgd.system import machine  # noqa: E402


def decode_rate(records):
    start = time.time()
    for record in records:
        images.read_image(record.path)
    return len(records) / (time.time() - start)


def loader_rate(records, workers, batches, batch_size):
    """Images/s between two moments with equally many batches ahead: a training run starts its processes once."""
    identities = [record.identity for record in records]
    sampler = samplers.IdentitySampler(identities, batch_size, 4, 0, batches + 1 + AHEAD * workers)
    loader = Loader(images.TrainingView(records, (224, 224), (252, 252)), batch_size, workers)
    loaded = loader.batches(sampler)
    next(loaded)
    start = time.time()
    count = sum(len(identities) for _, identities, _ in islice(loaded, batches))
    rate = count / (time.time() - start)
    loader.close()
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
                for number, record in enumerate(draw(folder, 128, width, height))
            ]
            for workers in (0, *options.num_workers):
                bare = decode_rate(records)
                rate = loader_rate(records, workers, options.batches, options.batch_size)
                print(
                    f"{width} x {height}, {workers} processes: {rate:6.1f} images/s, "
                    f"{rate / bare:.2f} of bare decoding by one core ({bare:.1f})",
                    flush=True,
                )


if __name__ == "__main__":
    main()
