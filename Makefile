# make quickstart   install, train a CLIP in five minutes, evaluate it, write runs/quickstart/report.html
# make test         everything: formatting, types, floors, all tests (23 minutes on 2 cores, cold)
# make test-fast    the daily tier (2:20 on 2 cores)
# make docs         the site of docs/, into site/; a broken link fails
# make test-parity  every family against transformers and open_clip, metrics against clip-benchmark,
#                   adapters against PEFT; writes docs/parity.md (25 minutes)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# jax 0.10 is the last line for Python 3.11; 3.12 and later take jax 0.11.
CONSTRAINTS := $(shell $(PYTHON) -c "import sys; print('constraints/py311.txt' if sys.version_info < (3, 12) else 'constraints/py312.txt')")
QUICKSTART := runs/quickstart
JOBS ?= 2
# A Python with the reference libraries; give another to use one that is there already.
ORACLE ?= .oracle/bin/python
PARITY := tests/weights/test_parity_families.py tests/evaluation/metrics/test_clip_benchmark.py \
	tests/adaptation/test_peft_parity.py

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: quickstart install install-dev lint docs test test-fast oracle test-parity format clean

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
# The library asks for a build of OpenCV that needs a screen.
	@$(BIN)/pip install --quiet --no-deps imagecorruptions-imaug -c $(CONSTRAINTS)
	@touch $@

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

docs: install-dev
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

test: lint
	$(BIN)/pytest -n $(JOBS) --dist worksteal --durations=30

test-fast: lint
	$(BIN)/pytest -n $(JOBS) --dist worksteal -m "not slow and not parity"

oracle: .oracle/.installed

# torchvision, timm and open_clip would ask for a build of torch of their own, clip-benchmark for
# scores of captions that its other metrics do without, and peft for accelerate with all it needs.
.oracle/.installed: constraints/oracle.txt
	@echo "installing the reference libraries into .oracle (once, a few minutes) …"
	@$(PYTHON) -m venv .oracle
	@.oracle/bin/pip install --quiet -c $< torch transformers safetensors ftfy regex pillow tqdm \
		huggingface_hub sentencepiece pandas braceexpand webdataset scikit-learn
	@.oracle/bin/pip install --quiet -c $< --no-deps torchvision timm open_clip_torch clip-benchmark \
		peft accelerate psutil
	@touch $@

test-parity: install-dev $(if $(filter .oracle/%,$(ORACLE)),oracle)
	@rm -rf .cache/oracle/results; status=0; \
	ORACLE=$(abspath $(ORACLE)) $(BIN)/pytest $(PARITY) -m parity --durations=10 || status=$$?; \
	$(BIN)/python tests/oracle/report.py || status=$$?; \
	exit $$status

format: install-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) site .oracle .cache .mypy_cache .ruff_cache .pytest_cache build *.egg-info
