"""Several machines, by MXNet's parameter server: to join one, and to notice that a process of it has died.

Every process of a run is the same command, and the variables of VARIABLES tell it what it is. Each sends heartbeats to
the scheduler, which answers. So the scheduler alone can tell that a worker or a server is missing, and the others can
tell that the scheduler is. Whoever misses one ends: none is left waiting for ever.
"""

import contextlib
import ctypes
import os
import sys
import threading
import time

from cgd.system.environment import DMLC_ROLE, mx
from cgd.system.errors import InputError, report

ROLES = ("scheduler", "server", "worker")
VARIABLES = {
    "DMLC_ROLE": "one of " + ", ".join(ROLES),
    "DMLC_PS_ROOT_URI": "the scheduler's address",
    "DMLC_PS_ROOT_PORT": "a free port of the scheduler's machine",
    "DMLC_NUM_SERVER": "the number of servers",
    "DMLC_NUM_WORKER": "the number of workers",
}
KINDS = ("dist_sync", "dist_async")

# The parameter server's numbers of the scheduler and of all servers and workers; a single one's go by rank.
SCHEDULER, OTHERS = 1, 6
SERVER_NUMBER, WORKER_NUMBER = (lambda rank: 8 + 2 * rank), (lambda rank: 9 + 2 * rank)

# Seconds between heartbeats, and without one until a process counts as dead; the parameter server reads them here.
INTERVAL, TIMEOUT = "PS_HEARTBEAT_INTERVAL", "PS_HEARTBEAT_TIMEOUT"
DEFAULTS = {INTERVAL: "3", TIMEOUT: "15"}

JOIN_SECONDS = 600  # for all processes to meet


def check(kind):
    """Raises InputError unless the kind of store and the variables fit together; None is a run on one machine."""
    if kind is None:
        if DMLC_ROLE:
            raise InputError("DMLC_ROLE is {}: --kvstore dist_sync joins the others; or unset it".format(DMLC_ROLE))
        return
    if kind not in KINDS:
        raise InputError("--kvstore {}: expected one of {}".format(kind, ", ".join(KINDS)))
    for name, meaning in VARIABLES.items():
        value = DMLC_ROLE if name == "DMLC_ROLE" else os.environ.get(name)
        if not value:
            raise InputError("--kvstore {}: the variable {} is not set; expected {}".format(kind, name, meaning))
        if name == "DMLC_ROLE":
            sound = value in ROLES
        else:
            sound = name == "DMLC_PS_ROOT_URI" or (value.isdigit() and 0 < int(value) < 65536)
        if not sound:
            raise InputError("the variable {} is {!r}; expected {}".format(name, value, meaning))
    for name, usual in DEFAULTS.items():
        text = os.environ.setdefault(name, usual)
        if not (text.isdigit() and int(text)):
            raise InputError("the variable {} is {!r}; expected whole seconds".format(name, text))


def serve():
    """Is the scheduler or a server, until all workers have left. Ends the process where one of them has died."""
    store = mx.kv.create("dist")
    server = mx.kvstore.kvstore_server.KVStoreServer(store)
    with Watch(store):
        server.run()


def join(kind):
    """A worker's store, once all processes have met. Ends the process where they do not."""
    print("waiting for {DMLC_NUM_WORKER} workers, {DMLC_NUM_SERVER} servers and the scheduler at {DMLC_PS_ROOT_URI}:"
          "{DMLC_PS_ROOT_PORT}".format(**os.environ), file=sys.stderr)  # fmt: skip
    text = "the processes of this run have not met for {} s; were all of them started?".format(JOIN_SECONDS)
    timer = threading.Timer(JOIN_SECONDS, _end, [text])
    timer.daemon = True
    timer.start()
    store = mx.kv.create(kind)
    timer.cancel()
    # A worker that ends early, whatever the reason, does not wait for the others, who will miss it.
    _call("MXKVStoreSetBarrierBeforeExit", store.handle, 0)
    return store


@contextlib.contextmanager
def membership(kind):
    """A worker's store within the block, or None on one machine; at its end all workers leave together."""
    if kind is None:
        yield None
        return
    store = join(kind)
    with Watch(store):
        yield store
        store._barrier()  # watched: one that died meanwhile is missed
    _call("MXKVStoreSetBarrierBeforeExit", store.handle, 1)
    _call("MXKVStoreFree", store.handle)
    store.handle = type(store.handle)()  # nothing is left for its destructor


class Watch:
    """Within, a thread ends the process as soon as it misses another one."""

    def __init__(self, store):
        self.store, self.over = store, threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self.thread.start()

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()

    def _run(self):
        # The first look must come after the server has begun to serve: before, the library has nothing to look at,
        # and would crash.
        while not self.over.wait(float(os.environ[INTERVAL])):
            missing = self._missing()
            if missing and not self.over.is_set():
                _end(
                    "{} has not been heard of for {} s, and the run ends here; once all is well again, train.py "
                    "--resume FOLDER goes on".format(missing, os.environ[TIMEOUT])
                )

    def _missing(self):
        """The process that is missing, in words, or None."""
        if DMLC_ROLE != "scheduler":
            return "the scheduler, which ends when any process dies," if self._dead(SCHEDULER) else None
        if not self._dead(OTHERS):
            return None
        numbers = {"server": SERVER_NUMBER, "worker": WORKER_NUMBER}
        dead = [
            "{} {} of {}".format(role, rank, count)
            for role in numbers
            for count in [int(os.environ["DMLC_NUM_" + role.upper()])]
            for rank in range(count)
            if self._dead(numbers[role](rank))
        ]
        return " and ".join(dead)

    def _dead(self, number):
        """How many of these processes are dead; none before all have met."""
        count = ctypes.c_int()
        _call("MXKVStoreGetNumDeadNode", self.store.handle, number, ctypes.byref(count), int(os.environ[TIMEOUT]))
        return count.value


def _call(function, *arguments):
    mx.base.check_call(getattr(mx.base._LIB, function)(*arguments))


def _end(text):
    """Ends the process at once: its other threads may wait for ever."""
    report(InputError("{}  {}".format(time.strftime("%X"), text)))
    sys.stderr.flush()
    os._exit(1)
