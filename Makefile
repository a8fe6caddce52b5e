# Two commands: `make quickstart` and `make test`. Everything lives in .venv; PYTHON=… chooses the interpreter.
FIT := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
  $$p -c '$(FIT)' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
OUT ?= runs/quickstart
# Much of the suite waits for processes that start: two test files at a time.
SPREAD ?= -n 2 --dist loadfile

.PHONY: quickstart test test-all test-cluster fuzz lint clean

quickstart: .venv/.installed
	$(BIN)/lookalike run recipes/quickstart.yaml --out $(OUT)

test: lint
	$(BIN)/python -m pytest -m "not slow" $(SPREAD)

test-all: lint
	$(BIN)/python -m pytest $(SPREAD)

# Root, and Debian's openssh-server openssh-client pdsh iproute2 slurm-wlm munge; what is missing is said and skipped.
test-cluster: .venv/.installed
	$(BIN)/python -m pytest -rs tests/cluster

# Damaged files with new seeds for an hour, or LOOKALIKE_FUZZ_SECONDS; `PYTHONPATH=tests python tests/data/test_fuzz.py KIND SEED` repeats one.
fuzz: .venv/.installed
	PYTHONPATH=tests $(BIN)/python tests/data/test_fuzz.py

lint: .venv/.installed
	$(BIN)/ruff check ssl tests benchmarks
	$(BIN)/ruff format --check ssl tests benchmarks
	$(BIN)/mypy

.venv/.installed: pyproject.toml
	@$(or $(PYTHON),false) -c '$(FIT)' || { echo "make: no Python 3.11 or newer with venv found:" \
	  "install it (Debian: python3 python3-venv) or say make PYTHON=/path/to/python $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[onnx,dev]'
	@touch $@

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache
