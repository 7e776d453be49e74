"""The processes of a cluster, for test_cluster.py, which forks them from one that has imported MXNet."""

import faulthandler
import os
import runpy
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


def play(role, variables, output, words):
    """A process of this role runs train.py or a function of this file; what it prints goes to the file `output`.

    Asked by SIGABRT, it prints where each thread is.
    """
    with open(output, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    faulthandler.enable()
    os.environ.update(variables, DMLC_ROLE=role)
    cluster.DMLC_ROLE = role  # it is read when MXNet is imported
    if words[0] == "train.py":
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
    else:
        globals()[words[0]](*words[1:])
    sys.stdout.flush()


def train_few(kind, data_dir, folder):
    """Trains a few steps by the recipe CHANGES, and keeps the parameters."""
    cluster.check(kind)
    if cluster.DMLC_ROLE != "worker":
        return cluster.serve()
    with cluster.membership(kind) as store:
        run = make(data_dir, Path(folder), store=store, **CHANGES)
        run.run()
        np.savez(str(Path(folder) / "worker{}.npz".format(store.rank)), **trained(run))


def serve_without_workers():
    """The workers end before they have joined."""
    cluster.JOIN_SECONDS = 1
    cluster.check("dist_sync")
    if cluster.DMLC_ROLE != "worker":
        cluster.serve()
