# The same commands for people and for CI. `make` alone lists them.

DEMO    ?= demo
MESSAGE ?= Could you move my dentist appointment to Thursday at 5 pm? It is urgent.
TORCH   ?= 2.13.0
VENV    := .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.trunkline-installed

# The first Python on this machine that is new enough; `make setup PYTHON=/path/to/python` overrides.
PYTHON  ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
             $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format types docs docs-check lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## a virtual environment in .venv with the locked versions and this package

$(STAMP): requirements.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "Trunkline needs Python 3.11 or newer: make setup PYTHON=/path/to/python3" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e .
	@touch $@

# Nothing here needs a model hub: the trunk is packaged, and tests make their own tiny encoders.
demo test: export HF_HUB_OFFLINE = 1
demo test: export TOKENIZERS_PARALLELISM = false

demo: $(STAMP) ## train, merge and try the example assistant in demo/ (kept; a second call resumes or does nothing)
	@test -e $(DEMO) || { mkdir -p build && rm -rf build/demo && cp -R examples/assistant build/demo \
	  && rm -rf build/demo/.trunkline && mv build/demo $(DEMO); }
	$(BIN)/trunkline --project $(DEMO) run
	$(BIN)/trunkline --project $(DEMO) eval
	$(BIN)/trunkline --project $(DEMO) predict "$(MESSAGE)"
	@echo && echo "The report is $(DEMO)/report.html; the project is $(DEMO)/, try: $(BIN)/trunkline -C $(DEMO) --help"

# worksteal, for it counts tests by their place: some share a name, of which loadfile, loadscope and loadgroup run one alone.
test: $(STAMP) ## the tests, without those marked slow
	@$(BIN)/python .ci/browser.py
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal

lint: $(STAMP) ## style and formatting, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## mend what `make lint` can mend by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP) ## the type checker
	$(BIN)/mypy

docs: $(STAMP) ## write docs/project-file.md from the types
	$(BIN)/python docs/generate_reference.py

docs-check: $(STAMP) ## fail if docs/project-file.md is not what the types say
	$(BIN)/python docs/generate_reference.py --check

# Local versions (+cpu) and the CUDA libraries that torch brings on some machines stay out: the lock holds on all of them.
# torch moves only on purpose (make lock TORCH=...): another build rounds differently, and measured results are tied to it.
lock: ## write requirements.txt anew from pyproject.toml, in a scratch environment
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --disable-pip-version-check --quiet 'setuptools>=77' 'torch==$(TORCH)' \
	  '.[dev,quickstart,openvino,serve,client,report,otel,ray]'
	{ sed '/^[^#]/,$$d' requirements.txt; build/lock/bin/python -m pip freeze --all --exclude pip --exclude trunkline \
	  | sed -E 's/\+[a-z0-9.]+$$//' | grep -viE '^(nvidia|cuda|triton==)'; } > build/requirements.txt
	mv build/requirements.txt requirements.txt && rm -rf build/lock

clean: ## remove .venv, caches and build leftovers; demo/ stays
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests examples benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} +
