"""Batches of images, decoded ahead by processes."""

import mmap
import multiprocessing
import os
import signal
import sys
import traceback
import weakref
from collections import deque

import numpy as np
from tqdm import tqdm

from cgd.system.environment import mx
from cgd.system.errors import STOPS, InputError

AHEAD = 2  # batches under way in each process


class Unreadable:
    """Images that could not be read. Each is reported; more than `limit` of them end the run, unless it is None."""

    def __init__(self, limit=0):
        self.limit, self.reasons = limit, set()

    def add(self, reason):
        """`reason` names the file. Raises InputError if there are too many."""
        if reason in self.reasons:
            return
        self.reasons.add(reason)
        if self.limit is None:
            tqdm.write(f"skipped: {reason}", file=sys.stderr)
            return
        if self.limit == 0:
            raise InputError(f"{reason}; --skip-unreadable N skips up to N such images")
        if len(self.reasons) > self.limit:
            raise InputError(f"{reason}; more than --skip-unreadable {self.limit}")
        tqdm.write(f"skipped ({len(self.reasons)} of {self.limit}): {reason}", file=sys.stderr)


class Loader:
    """Turns lists of a view's keys into batches of images.

    The processes are forked once, here, and serve every pass. Create a loader before the GPU is used: a process that
    is forked after that may hang. They end when this process ends, even by SIGKILL.

    A batch comes through memory that both processes share. It is anonymous (mmap), so that the small /dev/shm of a
    container does not limit it: `AHEAD` batches for each process.

    Parameters
    ----------
    view : images.View
    batch_size : int, the size of the largest batch
    num_workers : int, processes that decode; 0 decodes in this process. `close()` ends them.
    unreadable : Unreadable, what to do about images that cannot be read; without it the first is an InputError
    """

    def __init__(self, view, batch_size, num_workers=0, unreadable=None):
        self.view, self.unreadable = view, unreadable or Unreadable()
        self.workers = []
        self.close = weakref.finalize(self, _end, self.workers)  # when called, collected, or at exit
        try:
            for _ in range(num_workers):
                self.workers.append(_Worker(view, batch_size, [worker.connection for worker in self.workers]))
        except (OSError, OverflowError) as error:  # OverflowError: mmap's, for more bytes than it can count
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"no loader process could be started ({reason}); try a lower --num-workers or a smaller --batch-size"
            )

    def batches(self, batches):
        """Yields (pictures (N, H, W, 3) uint8 NDArray, identities (N,) int array, readable (N,) bool array).

        batches : iterable of lists of the view's keys, each of `batch_size` at most

        Raises InputError for an image that cannot be read (see Unreadable), and if a process has died.
        """
        for pictures, identities, reasons in self._ahead(batches) if self.workers else self._here(batches):
            for reason in filter(None, reasons):
                self.unreadable.add(reason)
            readable = np.array([reason is None for reason in reasons])
            yield mx.nd.array(pictures, dtype="uint8"), np.array(identities), readable

    def _here(self, batches):
        for keys in batches:
            pictures = np.empty((len(keys), *_shape(self.view)), np.uint8)
            yield (pictures, *_decode(self.view, keys, pictures))

    def _ahead(self, batches):
        """Process i % n gets batch i. It gets the next one when a batch of its own has been consumed."""
        batches, waiting = iter(batches), deque()
        for place in range(AHEAD * len(self.workers)):
            self._ask(self.workers[place % len(self.workers)], batches, waiting)
        while waiting:
            worker, ticket = waiting.popleft()
            yield worker.answer(ticket)
            self._ask(worker, batches, waiting)  # the caller has copied the batch, which this will overwrite

    def _ask(self, worker, batches, waiting):
        keys = next(batches, None)
        if keys is not None:
            waiting.append((worker, worker.ask(keys)))


class _Worker:
    """A process that decodes batches, in the order of the requests.

    others : connections to the processes forked before. This one closes its copies; otherwise they would not notice
        that the parent has ended.
    """

    def __init__(self, view, batch_size, others):
        shape = (AHEAD, batch_size, *_shape(view))
        self.slots = np.frombuffer(mmap.mmap(-1, int(np.prod(shape))), np.uint8).reshape(shape)
        self.connection, theirs = multiprocessing.Pipe()
        arguments = (theirs, self.slots, view, [self.connection, *others])
        self.process = multiprocessing.get_context("fork").Process(target=_serve, args=arguments, daemon=True)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # until the process has handlers of its own
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        self.asked = 0

    def ask(self, keys):
        """Requests a batch. Returns its ticket."""
        ticket, self.asked = self.asked, self.asked + 1
        try:
            self.connection.send((ticket, keys))
        except OSError:
            raise self._died()
        return ticket

    def answer(self, ticket):
        """(pictures, identities, reasons) of that batch. `pictures` is overwritten by a later batch."""
        try:
            answered, identities, reasons = self.connection.recv()
            while answered != ticket:  # left over from an earlier pass that was not completed
                answered, identities, reasons = self.connection.recv()
        except (EOFError, OSError):
            raise self._died()
        if isinstance(reasons, str):
            raise RuntimeError("in a loader process:\n" + reasons)
        return self.slots[ticket % AHEAD, : len(identities)], identities, reasons

    def _died(self):
        self.process.join(10)
        code = self.process.exitcode
        cause = f"with exit code {code}"
        if code is not None and code < 0:
            cause = f"by the signal {signal.Signals(-code).name}"
        return InputError(
            f"a loader process was ended {cause}. If memory is short (a container's limit?), try a lower --num-workers "
            "or --batch-size; --num-workers 0 uses no such processes"
        )


def _serve(connection, slots, view, others):
    """The loop of a loader process, until its parent has ended."""
    for number in STOPS:  # Ctrl-C goes to the whole group; the parent decides when to end this process
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    for other in others:
        other.close()
    try:
        while True:
            ticket, keys = connection.recv()
            try:
                answer = _decode(view, keys, slots[ticket % AHEAD])
            except Exception:
                answer = (), traceback.format_exc()
            connection.send((ticket, *answer))
    except (EOFError, OSError):
        os._exit(0)


def _end(workers):
    """Ends the processes."""
    for worker in workers:
        worker.process.kill()
        worker.process.join()
        worker.connection.close()


def _shape(view):
    width, height = view.size
    return height, width, 3


def _decode(view, keys, pictures):
    """Fills `pictures`. Returns the identities, and for each image why it cannot be read, or None."""
    identities, reasons = [], []
    for place, key in enumerate(keys):
        pictures[place], identity, reason = view[key]
        identities.append(identity)
        reasons.append(reason)
    return identities, reasons
