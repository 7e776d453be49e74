"""Reads Cars196's MATLAB files in a separate process, because scipy's reader crashes on some corrupt files.

python -m cgd.data.matlab FILE VARIABLE FIELD ...    prints, as JSON, for each struct a list of values for each field
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

from cgd.system.errors import InputError


def read_structs(file, variable, fields):
    """For each struct of `variable`, a list with the values of each field: [12.0] for a number, ["text"] for a string.

    Raises InputError if the file cannot be read, lacks the variable or a field, or if scipy is not installed.
    """
    if not importlib.util.find_spec("scipy"):
        raise InputError(f"{file}: reading MATLAB files needs scipy: pip install scipy 'numpy<2'")
    words = [sys.executable, "-m", "cgd.data.matlab", str(Path(file).absolute()), variable, *fields]
    done = subprocess.run(words, cwd=str(Path(__file__).parents[2]), capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout)
    reason = done.stderr.strip().split("\n")[-1] or "the reader crashed"
    raise InputError(
        f"{file}: expected a MATLAB file with the struct array `{variable}` and its fields {', '.join(fields)} "
        f"({reason}); the file may be truncated. Use the test annotations with labels"
    )


def main():
    from scipy.io import loadmat

    file, variable, *fields = sys.argv[1:]
    structs = loadmat(file, variable_names=[variable])[variable].ravel()
    columns = [[value.ravel().tolist() for value in structs[field]] for field in fields]
    json.dump(list(zip(*columns)), sys.stdout)


if __name__ == "__main__":
    main()
