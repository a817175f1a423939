# make demo    classify sample portraits with the embedded model (IMAGES=path for your own)
# make test    lint, types and tests (make test-nightly: with longer loops)
# make docs    the documentation as a site in site/
# All make .venv themselves; nothing else on the machine is touched.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo test test-nightly lint docs clean

ifdef IMAGES
demo: $(VENV)/runtime.stamp
else
demo: IMAGES = demo
demo: $(VENV)/runtime.stamp demo/astronaut.png
endif
	$(BIN)/ffd-run --table "$(IMAGES)"

test: lint
	$(BIN)/python -m pytest -m 'not alone' --numprocesses 2 --dist loadfile --cov --cov-report=
	$(BIN)/python -m pytest -m alone --cov --cov-append
	$(BIN)/coverage report --include='runtime/*,cluster/*,export/*' --fail-under=90 --format=total

# As `make test`, with longer loops of kills and reconnections.
test-nightly:
	FFD_NIGHTLY=1 $(MAKE) test

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/docs.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The stamp comes last, so that an installation that was broken off is begun again.
$(VENV)/runtime.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable .
	touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[dev]'
	$(PIP) --no-deps 'tritonclient==2.73.0' # only for its schema; its gRPC wants an older protobuf
	touch $@ $(VENV)/runtime.stamp

$(VENV)/docs.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[docs]'
	touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ffd needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

demo/astronaut.png: tools/fetch_portraits.py | $(BIN)/python
	$(BIN)/python tools/fetch_portraits.py demo

clean:
	rm -rf $(VENV) demo site
