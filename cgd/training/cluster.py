"""Several machines, by MXNet's parameter server: joining it, and detecting processes that have died.

All processes of a run have the same command; the environment variables in VARIABLES set each one's role. Each sends
heartbeats to the scheduler, which answers. So the scheduler detects a dead worker or server, and the others detect a
dead scheduler. A process that loses its peers, or whose peers do not appear, exits: none waits forever.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time

from cgd.system.environment import DMLC_ROLE, mx
from cgd.system.errors import STOPS, InputError, report, stops_handled_by

ROLES = ("scheduler", "server", "worker")
VARIABLES = {
    "DMLC_ROLE": "one of " + ", ".join(ROLES),
    "DMLC_PS_ROOT_URI": "the scheduler's address",
    "DMLC_PS_ROOT_PORT": "a free port of the scheduler's machine",
    "DMLC_NUM_SERVER": "the number of servers",
    "DMLC_NUM_WORKER": "the number of workers",
}

# Node ids of the parameter server: the scheduler, all servers and workers, and a single one by its rank.
SCHEDULER, OTHERS = 1, 6
SERVER_NUMBER, WORKER_NUMBER = (lambda rank: 8 + 2 * rank), (lambda rank: 9 + 2 * rank)

# Seconds between heartbeats, and without one until a process counts as dead. Read by the parameter server.
INTERVAL, TIMEOUT = "PS_HEARTBEAT_INTERVAL", "PS_HEARTBEAT_TIMEOUT"
DEFAULTS = {INTERVAL: "3", TIMEOUT: "15"}

JOIN_SECONDS = 600  # for all processes to connect
NOT_BOUND = {  # by whether this is the scheduler
    True: "cannot listen at {DMLC_PS_ROOT_URI}:{DMLC_PS_ROOT_PORT}; expected this machine's address, in digits, and a "
    "port that no other process uses (does another scheduler run?)",
    False: "cannot listen at this machine's own address; expected it in DMLC_NODE_HOST, or its network device in "
    "DMLC_INTERFACE, or neither",
}
NOT_JOINED = f"not all processes of this run have connected within {JOIN_SECONDS} s; were all of them started?"


def check(kind):
    """Raises InputError if the kind of store and the variables do not match. None is a run on one machine."""
    if kind is None:
        if DMLC_ROLE:
            raise InputError(f"DMLC_ROLE is {DMLC_ROLE}: --kvstore dist_sync joins the others; or unset it")
        return
    for name, meaning in VARIABLES.items():
        value = DMLC_ROLE if name == "DMLC_ROLE" else os.environ.get(name)
        if not value:
            raise InputError(f"--kvstore {kind}: the variable {name} is not set; expected {meaning}")
        if name == "DMLC_ROLE":
            sound = value in ROLES
        else:
            sound = name == "DMLC_PS_ROOT_URI" or (value.isdigit() and 0 < int(value) < 65536)
        if not sound:
            raise InputError(f"the variable {name} is {value!r}; expected {meaning}")
    for name, usual in DEFAULTS.items():
        text = os.environ.setdefault(name, usual)
        if not (text.isdigit() and int(text)):
            raise InputError(f"the variable {name} is {text!r}; expected whole seconds")


def serve():
    """Runs the scheduler or a server until all workers have left. Ends the process if one of them dies."""
    for number in STOPS:  # Python's handlers do not run while the library serves
        signal.signal(number, signal.SIG_DFL)
    store = mx.kv.create("dist")
    server = mx.kvstore.kvstore_server.KVStoreServer(store)
    with Watch(store):
        with bound():
            server.run()


def join(kind):
    """A worker's store, once all processes are connected. Ends the process after JOIN_SECONDS without that."""
    print("waiting for {DMLC_NUM_WORKER} workers, {DMLC_NUM_SERVER} servers and the scheduler at {DMLC_PS_ROOT_URI}:"
          "{DMLC_PS_ROOT_PORT}".format(**os.environ), file=sys.stderr)  # fmt: skip
    timer = threading.Timer(JOIN_SECONDS, _end, [NOT_JOINED])
    timer.daemon = True
    timer.start()
    with stops_handled_by(signal.SIG_DFL), bound():  # Python's handlers do not run while the library waits
        store = mx.kv.create(kind)
    timer.cancel()
    # A worker that ends early does not wait for the others; they will detect it.
    _call("MXKVStoreSetBarrierBeforeExit", store.handle, 0)
    return store


def wait_for_all(store):
    """Returns once all workers are here. A stop ends the process at once, as nothing is being written."""
    with stops_handled_by(signal.SIG_DFL):
        store._barrier()


@contextlib.contextmanager
def bound():
    """Turns the library's error for an address at which this process cannot listen."""
    try:
        yield
    except mx.base.MXNetError as error:
        if "bind failed" not in str(error):
            raise
        raise InputError(NOT_BOUND[DMLC_ROLE == "scheduler"].format(**os.environ)) from None


@contextlib.contextmanager
def membership(kind):
    """A worker's store within the block, or None on one machine. At the end all workers leave together."""
    if kind is None:
        yield None
        return
    store = join(kind)
    with Watch(store):
        yield store
        wait_for_all(store)  # still watched, for one may have died
    _call("MXKVStoreSetBarrierBeforeExit", store.handle, 1)
    _call("MXKVStoreFree", store.handle)
    store.handle = type(store.handle)()  # nothing is left for its destructor


class Watch:
    """Within the block, a thread ends the process as soon as it detects that another one has died."""

    def __init__(self, store):
        self.store, self.over = store, threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self.thread.start()

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()

    def _run(self):
        # No process counts as dead before TIMEOUT. And the library crashes if asked before it has begun to serve.
        pause, joined, began = TIMEOUT, False, time.time()
        while not self.over.wait(float(os.environ[pause])):
            pause, joined = INTERVAL, joined or self._connected()
            if not joined and time.time() - began > JOIN_SECONDS:
                _end(NOT_JOINED)
            missing = self._missing()
            if missing and not self.over.is_set():
                _end(
                    f"{missing} has sent no heartbeat for {os.environ[TIMEOUT]} s; the run ends here. Resume it with "
                    "train.py --resume FOLDER"
                )

    def _connected(self):
        """Whether all processes have connected: then any other one has been silent for longer than -1 s."""
        return self._dead(OTHERS if DMLC_ROLE == "scheduler" else SCHEDULER, timeout=-1) > 0

    def _missing(self):
        """The dead process, as text, or None."""
        if DMLC_ROLE != "scheduler":
            return "the scheduler, which ends when any process dies," if self._dead(SCHEDULER) else None
        if not self._dead(OTHERS):
            return None
        numbers = {"server": SERVER_NUMBER, "worker": WORKER_NUMBER}
        dead = [
            f"{role} {rank} of {count}"
            for role in numbers
            for count in [int(os.environ["DMLC_NUM_" + role.upper()])]
            for rank in range(count)
            if self._dead(numbers[role](rank))
        ]
        return " and ".join(dead)

    def _dead(self, number, timeout=None):
        """How many of these processes have sent no heartbeat for so many s (TIMEOUT); 0 before all are connected."""
        count, timeout = ctypes.c_int(), timeout or int(os.environ[TIMEOUT])
        _call("MXKVStoreGetNumDeadNode", self.store.handle, number, ctypes.byref(count), timeout)
        return count.value


def _call(function, *arguments):
    mx.base.check_call(getattr(mx.base._LIB, function)(*arguments))


def _end(text):
    """Ends the process at once: its other threads may wait forever."""
    report(InputError("{}  {}".format(time.strftime("%X"), text)))
    sys.stderr.flush()
    os._exit(1)
