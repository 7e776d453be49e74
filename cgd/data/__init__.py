"""Data sets, annotation files, preprocessing, samplers and data loading; the demo data set."""

import sys

from cgd.system import machine
from cgd.system.errors import InputError, report

try:  # here, before numpy is imported: whoever has just come may have forgotten the environment
    machine.check_python()
    machine.check_packages()
except InputError as error:
    sys.exit(report(error))
