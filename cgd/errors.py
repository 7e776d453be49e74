"""What a command says when its input is wrong: one line, exit code 2, no traceback."""

import argparse
import sys


class InputError(Exception):
    """Something the user gave is wrong. The message is one line: which file or flag, what was expected, what to do."""


class Parser(argparse.ArgumentParser):
    """As argparse's own, but what is wrong with the command line is an InputError, one line."""

    def error(self, message):
        raise InputError("{}; {} --help lists the flags".format(message, self.prog))


def run(main):
    """Runs a command's `main`; exit code 2 after an `InputError`, 130 after Ctrl-C, as a shell expects.

    An OSError that nobody expected is the machine's (a full disk, no permission), not the program's: one line as well.
    """
    try:
        main()
    except InputError as error:
        sys.exit(report(error))
    except OSError as error:
        sys.exit(report("{}: {}".format(error.filename or "input or output", error.strerror or error)))
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)


def report(error):
    """Prints the error's one line and gives the exit code that goes with it."""
    print("error: {}".format(" ".join(str(error).split())), file=sys.stderr)
    return 2
