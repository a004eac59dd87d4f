# The whole house from a bare machine: python 3.11+ with venv, and make.
#   make quickstart   train, sample, judge and show a real model
#   make test         the fast tier
#   make proofs       the slow tier, only what is stale      (ARGS="--list", "--all", "--budget 600", "--shard 1/4")
#   make docs         the systems page and the site
#   make lint         style, types, floors                   (make format puts the style right)
# What a target needs is installed once; a stamp in the environment remembers it.

PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=
bin    := $(VENV)/bin
pip     = $(bin)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
pinned := pyproject.toml constraints.txt

.PHONY: quickstart test proofs docs lint format clean
.DEFAULT_GOAL := quickstart
.DELETE_ON_ERROR:

quickstart: $(VENV)/.all
	$(bin)/ornstein quickstart $(ARGS)

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(bin)/python -m pytest -n 2 --dist loadfile -m "not proof" $(ARGS)

proofs: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(bin)/python scripts/proofs.py $(ARGS)

docs: $(VENV)/.dev $(VENV)/.docs
	$(bin)/python scripts/proofs.py --page
	$(bin)/mkdocs build --quiet --strict $(ARGS)

lint: $(VENV)/.dev
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy
	$(bin)/lint-imports --no-logo

format: $(VENV)/.dev
	$(bin)/ruff check --fix .
	$(bin)/ruff format .

clean:
	rm -rf $(VENV) site build dist

$(VENV)/.made:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "Ornstein needs Python 3.11 or newer, and there is no '$(PYTHON)': install one, or name it: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Ornstein needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Name a newer one: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.all: $(VENV)/.made $(pinned)
	$(pip) -e '.[all]'
	@touch $@

# dev holds all: whoever tests can run the quickstart at once
$(VENV)/.dev: $(VENV)/.made $(pinned)
	$(pip) -e '.[dev]'
	@touch $(VENV)/.all $@

$(VENV)/.docs: $(VENV)/.made $(pinned)
	$(pip) -e '.[docs]'
	@touch $@
