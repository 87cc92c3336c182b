PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# A worker a core, of one thread each; more than four would want more memory than cores are usually sold with.
PYTEST := $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: demo test test-slow lint types check clean

demo: $(VENV)/.core
	$(BIN)/llmfold --model demo --ratio 0.2 --output demo-output --overwrite

test: $(VENV)/.dev
	$(PYTEST) --dist worksteal -m "not slow"

# File by file: what is slow in a file shares the folds of the file.
test-slow: $(VENV)/.dev
	$(PYTEST) --dist loadfile -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

check: lint types test test-slow

# torch goes first and pinned: left to a dependency, pip may choose a build of several gigabytes.
$(VENV)/.core: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "llmfold needs Python 3.10 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) $(TORCH)
	$(INSTALL) --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(INSTALL) --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demo-output build dist *.egg-info
