"""Time and memory of training steps, with and without --micro-batch, on batches of noise.

    OMP_NUM_THREADS=1 python benchmarks/micro_batch.py
    OMP_NUM_THREADS=1 python benchmarks/micro_batch.py --micro-batch 16

CUB200's recipe, on the CPU, without reading images. The time is the processor's, of all threads; with several, it would
include the time that OpenMP's threads wait. The memory is the largest that the process had, so each setting needs a
process of its own.
"""

import argparse
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from cgd.system.environment import mx  # noqa: E402
from cgd.tables.rates import on_noise  # noqa: E402
from cgd.training import recipes  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--micro-batch", type=int)
    parser.add_argument("--backbone", default="resnet50_v1")
    parser.add_argument("--steps", type=int, default=2)
    args = parser.parse_args()

    recipe = recipes.replace(recipes.RECIPES["cub200"], backbone=args.backbone)
    run, pictures, identities = on_noise(recipe, args.batch_size, mx.cpu(), args.micro_batch)
    times = []
    for _ in range(args.steps):
        start = time.process_time()
        run.step(pictures, identities)
        mx.nd.waitall()
        times.append(time.process_time() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"batch of {args.batch_size} in pieces of {args.micro_batch or args.batch_size}: ", end="")
    print(f"{min(times):.1f} s, the fastest of {args.steps} steps; peak memory {peak:.2f} GiB")


if __name__ == "__main__":
    main()
