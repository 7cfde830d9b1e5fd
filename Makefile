# `make demo`, `make test`: nothing but Python (3.11 to 3.13) and make is needed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Test files side by side; one after the other: make test PROCESSES=
PROCESSES ?= --numprocesses auto --maxprocesses 4 --dist loadfile

.PHONY: demo test servers lint clean
.DELETE_ON_ERROR:

demo: $(VENV)/runtime.stamp
	$(BIN)/python examples/flights.py

test: $(VENV)/dev.stamp
	$(BIN)/pytest $(PROCESSES) $(ARGS)

# What tests of connectors run against; without it they are skipped. Needs Java 17 or newer, and Maven.
servers:
	$(PYTHON) tests/servers/kafka.py
	$(PYTHON) tests/servers/registry.py

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check

clean:
	rm -rf $(VENV) build dist out *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis

$(VENV)/runtime.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info[:2] <= (3, 13); sys.exit(None if ok else \
		f"Millstream needs Python 3.11 to 3.13, $(PYTHON) is {sys.version.split()[0]}: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable .
	touch $@

$(VENV)/dev.stamp: $(VENV)/runtime.stamp
	$(INSTALL) --editable '.[dev]'
	touch $@
