# make demo: trains and evaluates a network on pictures that it draws itself · make test: lint and tests
# make bench: tables of speed, see docs/performance.md
# make test-long: the same tests with 12,930 mangled files, more kills, and all cores for each process; for the night
# make test-peers: compares weight files, ONNX models and indexes with other programs, which it installs (torch:
#   gigabytes); with CGD_LONG_TESTS=1 before it, more of each
# Each does its own set-up, in .venv. A Python of your choice, before .venv is there: make PYTHON=python3.10 demo

# The first Python here that this project can use; if there is none, python3 says what is wrong with it.
# python3 is not taken for this if it is 3.13, for which numpy must be compiled, and there is an older one.
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.10 python3.9 python3.8 python3.13; do \
	{ [ $$p != python3 ] || python3 -c 'import sys; sys.exit(sys.version_info >= (3, 13))' 2>/dev/null; } && \
	$$p -m cgd.system.machine >/dev/null 2>&1 && break; p=python3; done; echo $$p)

.PHONY: demo test test-long test-peers lint bench no-python
demo: .venv/ready
	.venv/bin/python -m cgd.demo

# A process for each core, up to 4, each of which runs tests of its own; one that has none left takes some of another's.
test: .venv/ready-for-tests lint
	.venv/bin/python -m pytest -n auto --maxprocesses 4 --dist worksteal

test-long: .venv/ready-for-tests lint
	CGD_LONG_TESTS=1 .venv/bin/python -m pytest

# gluoncv without its dependencies: the two files of it that are read need none.
test-peers: .venv/ready-for-tests
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-peers.txt
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps gluoncv
	.venv/bin/python -m pytest tests/network/test_peers.py tests/network/test_onnx_*.py tests/test_search.py \
		tests/test_commands.py

lint: .venv/ready-for-tests
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

# An environment with the same build is kept, with what was added to it: only what these files name is installed.
# The CPU build of MXNet, or the GPU build where a GPU that it has code for is found: see cgd/system/machine.py.
# It is made anew when its Python is gone, or is another version after an update of the system's, which has no pip there.
no-python:
.venv/ready: requirements.txt requirements-cpu.txt $(shell .venv/bin/python -c 'import pip' 2>/dev/null || echo no-python)
	@requirements=$$($(PYTHON) -m cgd.system.machine) && echo "installing $$requirements into .venv" && \
	{ { [ "$$(cat $@)" = "$$requirements" ] && .venv/bin/python -c 'import pip'; } 2>/dev/null || $(PYTHON) -m venv --clear .venv; } && \
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r $$requirements && echo $$requirements >$@

.venv/ready-for-tests: .venv/ready requirements-test.txt
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-test.txt && touch $@

# Speed beside PyTorch, onnxruntime, OpenVINO and faiss, in an environment of its own.
bench: .venv-bench/ready
	.venv-bench/bin/python benchmarks/compare.py

.venv-bench/ready: requirements-bench.txt requirements-cpu.txt
	@$(PYTHON) -m cgd.system.machine >/dev/null
	@echo "installing requirements-bench.txt into .venv-bench: gigabytes, for minutes and without a word"
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-bench.txt && touch $@
