# Two commands: `make quickstart` and `make test`. Everything lives in .venv; PYTHON=… chooses the interpreter.
PYTHON ?= $(firstword $(foreach p,python3.13 python3.12 python3.11 python3,$(shell command -v $(p) 2>/dev/null)))
BIN := .venv/bin
OUT ?= runs/quickstart

.PHONY: quickstart test test-all lint clean

quickstart: .venv/.installed
	$(BIN)/lookalike run recipes/quickstart.yaml --out $(OUT)

test: lint
	$(BIN)/python -m pytest -m "not slow"

test-all: lint
	$(BIN)/python -m pytest

lint: .venv/.installed
	$(BIN)/ruff check ssl tests benchmarks
	$(BIN)/ruff format --check ssl tests benchmarks
	$(BIN)/mypy

.venv/.installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: no python3 found: install Python 3.11 or newer"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make: $(PYTHON) is older than 3.11: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' || { echo "make: $(PYTHON) cannot make environments: install python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[onnx,dev]'
	@touch $@

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache
