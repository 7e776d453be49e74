"""Which of MXNet's operators take the time of inference, as test.py runs it, and of a training step.

    python benchmarks/operators.py ResNet-50

Random weights and images; the times of MXNet's profiler, the first calls left out. Operators run one by one for it
(no bulks), and those below one per cent are added up.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

os.environ.update(MXNET_EXEC_BULK_EXEC_INFERENCE="0", MXNET_EXEC_BULK_EXEC_TRAIN="0")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import contestants  # noqa: E402
import networks  # noqa: E402

from cgd.network import checkpoints, model  # noqa: E402
from cgd.system import errors  # noqa: E402
from cgd.system.environment import mx  # noqa: E402

CALLS = 5
LEAST = 0.01  # share of the time


def inference(network):
    """The forward pass of a batch."""
    size = (network.size, network.size)
    x = mx.nd.random.normal(shape=(network.inference_batch, 3, *size))
    net = model.CGD(dim=network.dim, backbone=network.backbone)
    net.initialize(mx.init.Xavier(magnitude=2))
    net(x[:1])
    graph = checkpoints.inference(net, mx.cpu(), size)
    return lambda: graph(x).wait_to_read()


def training(network):
    """A step of train.py on a batch."""
    return contestants.cgd_step(SimpleNamespace(network=network))


def profiled(run):
    """{operator: (calls, milliseconds)} of one call of `run`, the mean of several."""
    run()
    run()
    mx.nd.waitall()
    with tempfile.TemporaryDirectory() as folder:
        what = {"profile_imperative": True, "profile_symbolic": True, "aggregate_stats": True}
        mx.profiler.set_config(filename=f"{folder}/profile.json", **what)
        mx.profiler.set_state("run")
        for _ in range(CALLS):
            run()
        mx.nd.waitall()
        mx.profiler.set_state("stop")
        found = json.loads(mx.profiler.dumps(reset=True, format="json"))
    operators = found["Time"]["operator"]
    return {name: (each["Count"] / CALLS, each["Total"] / CALLS) for name, each in operators.items()}


def report(times):
    """A table of the operators, the slowest first."""
    whole = sum(milliseconds for _, milliseconds in times.values())
    lines = ["| operator | calls | ms | share |", "|---|---|---|---|"]
    rest = 0
    for name, (count, milliseconds) in sorted(times.items(), key=lambda item: -item[1][1]):
        if milliseconds < LEAST * whole:
            rest += milliseconds
        else:
            lines.append(f"| {name} | {count:.0f} | {milliseconds:.1f} | {milliseconds / whole:.3f} |")
    return "\n".join([*lines, f"| all others | | {rest:.1f} | {rest / whole:.3f} |"])


def main():
    parser = errors.Parser(description=__doc__)
    parser.add_argument("network", choices=list(networks.NETWORKS))
    network = networks.NETWORKS[parser.parse_args().network]
    print(f"inference, {network.inference_batch} images\n\n{report(profiled(inference(network)))}")
    print(f"\ntraining, {network.training_batch} images\n\n{report(profiled(training(network)))}")


if __name__ == "__main__":
    errors.run(main)
