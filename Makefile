# make quickstart   install, train a CLIP in five minutes, evaluate it, write runs/quickstart/report.html
# make test         everything: formatting, types, all tests (under 15 minutes on 2 cores)
# make test-fast    the daily tier (under 2 minutes)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# jax 0.10 is the last line for Python 3.11; 3.12 and later take jax 0.11.
CONSTRAINTS := $(shell $(PYTHON) -c "import sys; print('constraints/py311.txt' if sys.version_info < (3, 12) else 'constraints/py312.txt')")
QUICKSTART := runs/quickstart
JOBS ?= 2

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: quickstart install install-dev lint test test-fast format clean

quickstart: install
	@$(BIN)/python -m clip_jax.train --config=configs/quickstart.py --workdir=$(QUICKSTART)

install: $(VENV)/.installed

$(VENV)/.installed: setup.py constraints/py311.txt constraints/py312.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
		{ echo "error: $(PYTHON) is older than 3.11; try make PYTHON=python3.12"; exit 2; }
	@echo "installing into $(VENV) (once, about a minute) …"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet -c $(CONSTRAINTS) -e .
	@touch $@

install-dev: $(VENV)/.installed-dev

$(VENV)/.installed-dev: $(VENV)/.installed
	@$(BIN)/pip install --quiet -c $(CONSTRAINTS) -e '.[dev]'
	@touch $@

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -n $(JOBS) --dist worksteal --durations=10

test-fast: lint
	$(BIN)/pytest -n $(JOBS) --dist worksteal -m "not slow"

format: install-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache build *.egg-info
