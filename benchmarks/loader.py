"""How fast training batches come, by the pictures' size and the number of loader processes, or of threads.

    python benchmarks/loader.py

Each figure is a ratio to the bare decoding of the same files by one core, measured right before it. The
pictures are drawn. train.py has processes; Gluon's loader has threads too.
"""

import argparse
import sys
import tempfile
import time
from itertools import islice, product
from pathlib import Path

from pipeline import draw

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cgd.data import flags, images, samplers  # noqa: E402
from cgd.system import machine  # noqa: E402
from cgd.system.environment import mx  # noqa: E402

AHEAD = 2  # batches that Gluon's loader has under way for each worker


def decode_rate(records):
    start = time.time()
    for record in records:
        images.read_image(record.path)
    return len(records) / (time.time() - start)


def loader_rate(records, workers, threads, batches, batch_size):
    """Images a second, between two moments with as many batches ahead: a training run starts its processes once."""
    identities = [record.identity for record in records]
    sampler = samplers.IdentitySampler(identities, batch_size, 4, 0, batches + 1 + AHEAD * workers)
    view = images.TrainingView(records, (224, 224), (252, 252))
    if threads:
        load = mx.gluon.data.DataLoader
        loaded = load(view, batch_sampler=sampler, batchify_fn=images.stack, num_workers=workers, thread_pool=True)
    else:
        loaded = images.loader(view, sampler, workers)
    loaded = iter(loaded)
    next(loaded)
    start = time.time()
    count = sum(len(identities) for _, identities, _ in islice(loaded, batches))
    rate = count / (time.time() - start)
    for _ in loaded:  # what is under way would be under way still while the next is timed
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
                for number, record in enumerate(draw(folder, 128, width, height))
            ]
            for kind, workers in [("processes", 0), *product(["processes", "threads"], options.num_workers)]:
                bare = decode_rate(records)
                rate = loader_rate(records, workers, kind == "threads", options.batches, options.batch_size)
                print(
                    f"{width} x {height}, {workers} {kind}: {rate:6.1f} images/s, {rate / bare:.2f} of bare decoding by one core ({bare:.1f})",
                    flush=True,
                )


if __name__ == "__main__":
    main()
