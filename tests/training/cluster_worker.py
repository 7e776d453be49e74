"""A worker, for test_cluster.py: trains a few steps by a recipe of changes, and keeps its parameters.

PYTHONPATH=. python tests/training/cluster_worker.py KIND DATA_DIR OUT_DIR
"""

import sys
from pathlib import Path

import numpy as np
from test_trainer import make

from cgd.training import cluster

CHANGES = {"iterations": 4, "milestones": (2,), "backbone_lr_mult": 0.5, "eval_every": 100, "learn_p": True}
CHANGES["weight_decay"] = 0.1  # without it Adam does not tell the sum of gradients from their mean


def trained(run):
    """{name: array} of all that is trained."""
    parameters = run.net.collect_params()
    return {name: p.data().asnumpy() for name, p in parameters.items() if p.grad_req != "null"}


def main(kind, data_dir, folder):
    cluster.check(kind)
    if cluster.DMLC_ROLE != "worker":
        return cluster.serve()
    with cluster.membership(kind) as store:
        run = make(data_dir, Path(folder), store=store, **CHANGES)
        run.run()
        np.savez(str(Path(folder) / "worker{}.npz".format(store.rank)), **trained(run))


if __name__ == "__main__":
    main(*sys.argv[1:])
