"""How a command ends: bad input is one line and exit code 2, and every way out goes through `run`."""

import argparse
import multiprocessing
import os
import select
import signal
import sys
import traceback
from contextlib import contextmanager

# Ctrl-C, how schedulers and containers stop a process, and what a process gets when its terminal is closed.
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

OK, FAILED, BAD_INPUT, STOPPED, READER_GONE = 0, 1, 2, 128 + signal.SIGINT, 128 + signal.SIGPIPE  # exit codes


class InputError(Exception):
    """Something the user gave is wrong. The message is one line: which file or flag, what was expected, what to do."""


class Parser(argparse.ArgumentParser):
    """As argparse's own, but what is wrong with the command line is an InputError, one line, and no flag is shortened.

    cgd/system/environment.py looks for --tf32 in the words of the command, and would not see --tf3.
    """

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options)

    def parse_known_args(self, args=None, namespace=None):
        """As argparse's own, but an empty word is an error: it is that of a shell variable without a value."""
        return super().parse_known_args(self._without_empty(args), namespace)

    def parse_known_intermixed_args(self, args=None, namespace=None):
        """As argparse's own, with the same check: from Python 3.12 on it does not call `parse_known_args`."""
        return super().parse_known_intermixed_args(self._without_empty(args), namespace)

    def _without_empty(self, args):
        words = sys.argv[1:] if args is None else list(args)
        for before, word in zip([self.prog, *words], words):
            flag, equals, value = word.partition("=")
            if not word or (flag.startswith("--") and equals and not value):
                self.error(f"after {word or before}: expected a value, found an empty one")
        return words

    def error(self, message):
        raise InputError(f"{message}; {self.prog} --help lists the flags")


_asked = []  # stops that were asked for: a KeyboardInterrupt alone is lost if it is raised in a destructor


@contextmanager
def stops_handled_by(handler):
    """Gives Ctrl-C, SIGTERM and SIGHUP another handler in the block, except for those that are ignored."""
    heeded = [number for number in STOPS if signal.getsignal(number) is not signal.SIG_IGN]
    handlers = {number: signal.signal(number, handler) for number in heeded}
    try:
        yield
    finally:
        for number, before in handlers.items():
            signal.signal(number, before)


@contextmanager
def uninterrupted():
    """Delays Ctrl-C, SIGTERM and SIGHUP: they become a KeyboardInterrupt at the end of the block."""
    with stops_handled_by(lambda *_: _asked.append(True)):
        yield
    if _asked:
        _asked.clear()
        raise KeyboardInterrupt


def forget_stops():
    """Forgets the stops that came so far, because they are being obeyed: the next `uninterrupted` need not raise."""
    _asked.clear()


def _handle_stops():
    """Makes each of STOPS a KeyboardInterrupt, except those that are ignored, as SIGHUP is under nohup."""

    def stop(*_):
        _asked.append(True)
        raise KeyboardInterrupt

    for number in STOPS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)


def run(main):
    """Runs a command's `main` and ends the process.

    Exit codes: 0; 2 after an InputError, or an OSError that names a file; 130 after a stop; 141 if nobody reads the
    output any more, as in `train.py | head`; 1 with a traceback after any other exception.
    """
    _prepare_streams()
    code, text = STOPPED, ""  # if a second stop comes while the first is handled
    _handle_stops()
    try:
        try:
            main()
            code = OK
        except BaseException as error:
            code, text = _explain(error)
    finally:
        leave(code, text)


def _prepare_streams():
    """Lets both streams be there, and take any file name, which may be of bytes that are not text.

    `command >&-` leaves no sys.stdout. Opened here, the null device also takes the file descriptor, before a log.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))
    if sys.stdout.errors == "strict" and hasattr(sys.stdout, "reconfigure"):  # not in Python 3.6, which is told so
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error has it


def _explain(error):
    """The exit code that goes with what ended the command, and what to print."""
    if isinstance(error, SystemExit):
        if isinstance(error.code, str):
            return FAILED, error.code
        return error.code if isinstance(error.code, int) else FAILED if error.code else OK, ""
    if _asked or _is_a_stop(error):
        also = "\n" + line_of(error) if isinstance(error, InputError) else ""
        return STOPPED, also + "\ninterrupted"
    if isinstance(error, InputError):
        return BAD_INPUT, line_of(error)
    if isinstance(error, OSError) and error.filename:
        return BAD_INPUT, line_of(f"{error.filename}: {error.strerror or error}")
    if isinstance(error, OSError) and _reader_is_gone():
        return READER_GONE, ""
    return FAILED, "".join(traceback.format_exception(type(error), error, error.__traceback__)).rstrip()


def _is_a_stop(error):
    """Whether this is a KeyboardInterrupt, or an error raised while one was handled."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _reader_is_gone():
    """Whether standard output or standard error is a pipe that nobody reads, or a terminal that was closed."""
    poll = select.poll()
    for stream in (1, 2):
        poll.register(stream, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def leave(code, text=""):
    """Prints a text to standard error and ends the process at once, with its loader processes. It never raises.

    Python's own exit is not used: it waits for threads and runs destructors, which may wait for a dead process. While
    the output is written, a further stop ends the process in the usual way: there is nothing left to save, and the
    reader of a pipe may have stalled.
    """
    try:
        for number in STOPS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        for child in multiprocessing.active_children():
            child.kill()
        if text:
            say(text)
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):  # nobody reads it, the disk is full, or it is closed
                code = code or (READER_GONE if _reader_is_gone() else FAILED)
    finally:
        os._exit(code)


def line_of(error):
    """The one line that reports an error."""
    return "error: {}".format(" ".join(str(error).split()))


def report(error):
    """Prints the error's one line and returns the exit code that goes with it."""
    say(line_of(error))
    return BAD_INPUT


def say(text):
    """Prints to standard error, if anybody reads it."""
    try:
        print(text, file=sys.stderr)
    except (OSError, ValueError):
        pass
