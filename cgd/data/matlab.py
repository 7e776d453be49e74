"""Reads Cars196's MATLAB files in a process of its own: scipy's reader crashes on some broken files.

python -m cgd.data.matlab FILE VARIABLE FIELD ...    prints [[the values of a field, for each field], for each element]
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

from cgd.system.errors import InputError


def read_structs(file, variable, fields):
    """[(the values of each field) of each struct]: a list for a field, as of [12.0], or of one text.

    Raises InputError for a file that cannot be read, or has not these, and where scipy is not installed.
    """
    if not importlib.util.find_spec("scipy"):
        raise InputError(f"{file}: reading MATLAB files needs scipy: pip install scipy")
    words = [sys.executable, "-m", "cgd.data.matlab", str(Path(file).absolute()), variable, *fields]
    done = subprocess.run(words, cwd=str(Path(__file__).parents[2]), capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout)
    reason = done.stderr.strip().split("\n")[-1] or "the reader crashed"
    raise InputError(
        "{}: expected a MATLAB file with `{}` that have {} ({}); is it whole? The test annotations must be the ones "
        "with labels".format(file, variable, ", ".join(fields), reason)
    )


def main():
    from scipy.io import loadmat

    file, variable, *fields = sys.argv[1:]
    structs = loadmat(file, variable_names=[variable])[variable].ravel()
    columns = [[value.ravel().tolist() for value in structs[field]] for field in fields]
    json.dump(list(zip(*columns)), sys.stdout)


if __name__ == "__main__":
    main()
