# Two commands do all set-up: `make run` and `make test`. Both share one environment and install nothing twice.
#
#   make run ARGS="my.toml --set seed=1"      arguments for `ammd run`
#   make run PIP_TORCH_ARGS="--index-url URL"  where pip gets PyTorch from, say its CPU builds

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
EXTRAS ?= test
PIP_TORCH_ARGS ?=
PYTEST_ARGS ?=
MARKED ?= not real
ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS)
TREE := .check/tree

.PHONY: run test test-real check format docs clean
.DELETE_ON_ERROR:

run: $(VENV)/.installed
	$(BIN)/ammd run $(ARGS)

test: $(VENV)/.installed-$(EXTRAS)
	$(BIN)/python -m pytest -m "$(MARKED)" $(PYTEST_ARGS)

test-real: MARKED = real
test-real: test

# Format, lint, types, pages that are generated, and what the wheel holds.
check: $(VENV)/.installed-$(EXTRAS) $(TREE)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	MYPYPATH=$(TREE) $(BIN)/mypy --python-executable $(BIN)/python -p ammd
	$(BIN)/python docs/generate.py --check
	$(BIN)/python docs/results.py --check
	$(BIN)/python .ci/check_wheel.py

format: $(VENV)/.installed-$(EXTRAS)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(VENV)/.installed-$(EXTRAS)
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/results.py

clean:
	rm -rf .check build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache

# PyTorch goes first and alone, so that its own index does not serve the rest.
$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(PIP_TORCH_ARGS) torch
	$(PIP) --editable .
	touch $@

$(VENV)/.installed-$(EXTRAS): $(VENV)/.installed
	$(PIP) --editable '.[$(EXTRAS)]'
	touch $@

# The folders as the one package that they install as, for the type checker: it does not follow an editable
# install's mapping.
.PHONY: $(TREE)
$(TREE):
	rm -rf $(TREE)
	mkdir -p $(TREE)/ammd
	ln -s $(CURDIR)/ammd/*.py $(CURDIR)/ammd/py.typed $(TREE)/ammd/
	ln -s $(CURDIR)/distill $(CURDIR)/export $(CURDIR)/runtime $(CURDIR)/pipeline $(TREE)/ammd/
