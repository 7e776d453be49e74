"""What a command says when its input is wrong: one line, exit code 2, no traceback."""

import sys


class InputError(Exception):
    """Something the user gave is wrong. The message is one line: which file or flag, what was expected, what to do."""


def run(main):
    """Runs a command's `main`; exit code 2 after an `InputError`, 130 after Ctrl-C, as a shell expects."""
    try:
        main()
    except InputError as error:
        sys.exit(report(error))
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)


def report(error):
    """Prints the error's one line and gives the exit code that goes with it."""
    print("error: {}".format(" ".join(str(error).split())), file=sys.stderr)
    return 2
