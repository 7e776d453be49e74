"""What a command says when its input is wrong: one line, exit code 2, no traceback."""

import argparse
import multiprocessing
import os
import signal
import sys
from contextlib import contextmanager

STOPS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C, and how schedulers and containers end a process


class InputError(Exception):
    """Something the user gave is wrong. The message is one line: which file or flag, what was expected, what to do."""


class Parser(argparse.ArgumentParser):
    """As argparse's own, but what is wrong with the command line is an InputError, one line, and no flag is shortened.

    cgd/environment.py looks for --tf32 before anything is parsed, and would not see --tf3.
    """

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message):
        raise InputError("{}; {} --help lists the flags".format(message, self.prog))


_asked = []  # the stops asked for: a KeyboardInterrupt alone is lost where it comes amid a destructor


@contextmanager
def uninterrupted():
    """Within, Ctrl-C and SIGTERM wait: they are a KeyboardInterrupt at the end."""
    handlers = {number: signal.signal(number, lambda *_: _asked.append(True)) for number in STOPS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if _asked:
        _asked.clear()
        raise KeyboardInterrupt


def _handle_stops():
    """Both ways to stop a command are a KeyboardInterrupt; its loader processes end without a word."""
    process, usual = os.getpid(), sys.excepthook

    def stop(*_):
        _asked.append(True)
        raise KeyboardInterrupt

    def tell(kind, error, trace):
        if os.getpid() == process or not issubclass(kind, (OSError, EOFError)):  # their parent has gone
            usual(kind, error, trace)

    sys.excepthook = tell
    for number in STOPS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as with nohup
            signal.signal(number, stop)


def run(main):
    """Runs a command's `main`; exit code 2 after an `InputError`, 130 after Ctrl-C or SIGTERM, as a shell expects.

    An OSError that nobody expected is the machine's (a full disk, no permission), not the program's: one line as well.
    """
    _handle_stops()
    try:
        main()
    except InputError as error:
        sys.exit(report(error))
    except OSError as error:
        sys.exit(report("{}: {}".format(error.filename or "input or output", error.strerror or error)))
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        _leave(130)


def _leave(code):
    """Ends at once, and the loader processes too.

    A scheduler's SIGTERM goes to them as well; one that it ends may have held a lock, for which the destructors of
    their pool would wait for ever.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(code)


def report(error):
    """Prints the error's one line and gives the exit code that goes with it."""
    print("error: {}".format(" ".join(str(error).split())), file=sys.stderr)
    return 2
