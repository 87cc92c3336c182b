PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Where torch comes from; for Linux without a GPU: https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
# A worker a core, of one thread each; more than four would want more memory than cores are usually sold with.
PYTEST := $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4
TORCH := $(shell grep '^torch==' constraints.txt)
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --no-input --constraint constraints.txt
LOG := $(VENV)/install.log

# What pip says is shown where it fails.
define install
@echo "installing $(1)"
@$(INSTALL) $(2) > $(LOG) 2>&1 || { cat $(LOG); exit 1; }
endef
define tell_size
@echo "installed: $(VENV) takes $$(du -sh $(VENV) | cut -f1)"
endef

.PHONY: demo test test-slow lint types docs families engines check clean

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
	$(BIN)/lint-imports --no-cache

types: $(VENV)/.dev
	$(BIN)/mypy

# A link that leads nowhere, in a page or to a file of the repository, ends the build; told to be quiet, mkdocs would miss it.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "documentation: build/site/index.html"

# A tiny model of every causal language model of transformers, folded; a quarter of an hour.
families: $(VENV)/.dev
	HF_HUB_OFFLINE=1 $(BIN)/python eval/families/run.py --work build/families --page eval/results/families.md

# Every engine in an environment of its own (12 GB), and folds of several models in each: hours. Goes on after a stop.
engines: $(VENV)/.dev
	HF_HUB_OFFLINE=1 $(BIN)/python eval/engines/matrix.py --install --missing --page eval/results/engines.md
	HF_HUB_OFFLINE=1 $(BIN)/python eval/engines/matrix.py --spoil
	HF_HUB_OFFLINE=1 $(BIN)/python eval/engines/blocks.py build/engines
	HF_HUB_OFFLINE=1 $(BIN)/python eval/families/older.py --work build/older --environments build/engines --page eval/results/families-older.md

check: lint types test test-slow

# torch goes first and pinned: left to a dependency, pip may choose a build of several gigabytes.
$(VENV)/.core: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "llmfold needs Python 3.10 or newer")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(call install,$(TORCH)$(if $(TORCH_INDEX), from $(TORCH_INDEX)),$(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH))
	$(call install,llmfold and what it needs,--editable .)
	$(tell_size)
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	$(call install,what its tests need,--editable '.[dev]')
	$(tell_size)
	@touch $@

$(VENV)/.docs: $(VENV)/.core
	$(call install,what its documentation needs,--editable '.[docs]')
	$(tell_size)
	@touch $@

clean:
	rm -rf $(VENV) demo-output build dist *.egg-info
