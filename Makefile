# make demo          classify sample portraits with the embedded model (IMAGES=path for your own)
# make lint          check style and types
# make test-fast     run the runtime's tests, without torch: under a minute on two cores
# make test          lint, then run all tests, as a change must pass them
# make test-nightly  run all tests with longer loops and more examples
# make docs          build the documentation as a site in site/
# make dist          build the wheel and the sdist, and run the demo from the installed wheel
# make clean         delete what the targets above made
#
# All targets work in .venv, which they make. Nothing else on the machine changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
# The environment into which `make dist` installs the wheel.
EMPTY := build/empty
# Files with tests marked `alone`. Without their names, pytest imports all files, and PyTorch.
ALONE = $(shell grep -rlF mark.alone tests --include='*.py')

.PHONY: demo help lint test-fast test test-nightly docs dist clean

ifdef IMAGES
demo: $(VENV)/runtime.stamp
else
demo: IMAGES = demo
demo: $(VENV)/runtime.stamp demo/astronaut.png
endif
	$(BIN)/ffd-run --table "$(IMAGES)"

help:
	@sed -n 's/^# make /make /p' Makefile

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Three processes, because many of these tests wait for servers and other processes.
test-fast: $(VENV)/test.stamp
	$(BIN)/python -m pytest tests/runtime -m 'not alone' --numprocesses 3 --dist loadfile

# Coverage takes a fifth more processor time. It is measured only if CI is set, as GitHub does:
# make test CI=1
ifdef CI
COVER := --cov --cov-report=
COVER_MORE := --cov --cov-append
endif

# The tests start hundreds of processes, which would compile the packages anew.
test test-fast: export PYTHONDONTWRITEBYTECODE =
# PyTorch and NumPy would use all cores in each of the parallel processes.
test test-fast: export OMP_NUM_THREADS = 1

test: lint
	$(BIN)/python -m pytest -m 'not alone' --numprocesses 2 --dist loadfile --no-loadscope-reorder \
		$(COVER)
	$(BIN)/python -m pytest -m alone $(ALONE) $(COVER_MORE)
ifdef CI
	$(BIN)/coverage report --fail-under=90 --format=total
endif

# As `make test`, with longer loops of kills and reconnections, and four times the examples of
# property tests.
test-nightly:
	FFD_NIGHTLY=1 $(MAKE) test

# The wheel is built from the sdist, so that a file that the sdist lacks fails here.
dist: demo/astronaut.png
	$(PIP) build
	rm -rf dist $(EMPTY)
	$(BIN)/python -m build
	$(BIN)/python -m venv $(EMPTY)
	$(EMPTY)/bin/python -m pip --disable-pip-version-check install --quiet \
		--constraint constraints.txt dist/*.whl
	cd $(EMPTY) && bin/ffd-run --table ../../demo

docs: $(VENV)/docs.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The stamp comes last, so that make repeats an installation that was interrupted.
$(VENV)/runtime.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable .
	touch $@

$(VENV)/test.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[test]'
	touch $@ $(VENV)/runtime.stamp

$(VENV)/dev.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[dev]'
	$(PIP) --no-deps 'tritonclient==2.73.0' # only for its schema; its gRPC wants an older protobuf
	touch $@ $(VENV)/test.stamp $(VENV)/runtime.stamp

$(VENV)/docs.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[docs]'
	touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ffd needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

demo/astronaut.png: tools/fetch_portraits.py | $(BIN)/python
	$(BIN)/python tools/fetch_portraits.py demo

clean:
	rm -rf $(VENV) build demo dist site .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
