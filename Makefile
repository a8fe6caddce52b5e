# Two commands: `make quickstart` and `make test`. Everything lives in .venv; PYTHON=… chooses the interpreter.
FIT := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
  $$p -c '$(FIT)' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
OUT ?= runs/quickstart
# Four test files at a time on two cores, for some only wait; tests/conftest.py puts the longest first.
SPREAD ?= -n 4 --dist loadfile --no-loadscope-reorder

.PHONY: quickstart test test-all test-cluster fuzz same lint docs docs-recipes clean

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

# Whether the working tree trains what the commit BASE trained, bit for bit; WITH="--fast" or WITH="--only 'methods/*'".
same: .venv/.installed
	$(BIN)/python tests/same.py $(or $(BASE),$(error say make same BASE=<commit>)) $(WITH)

lint: .venv/.installed
	$(BIN)/ruff check ssl tests benchmarks
	$(BIN)/ruff format --check ssl tests benchmarks
	$(BIN)/mypy

# Every section and key, from signatures and docstrings.
docs-recipes: .venv/.installed
	$(BIN)/lookalike schema --markdown > docs/recipes.md.new
	mv docs/recipes.md.new docs/recipes.md
# The site of docs/ in build/site, by zensical; a link that leads nowhere, there or in README, fails it.
docs: .venv/.installed
	@$(BIN)/python -c 'import zensical' 2>/dev/null || $(BIN)/python -m pip install --quiet --editable '.[docs]'
	$(BIN)/zensical build --strict --clean
	$(BIN)/python -m pytest tests/test_docs.py -k "links or site or named"

# What the kernel of views is made of is here too, so that a pull leaves none of before.
VIEWS := ssl/lookalike/views
.venv/.installed: pyproject.toml hatch_build.py $(VIEWS)/compiling.py $(VIEWS)/native.c
	@$(or $(PYTHON),false) -c '$(FIT)' || { echo "make: no Python 3.11 or newer with venv found:" \
	  "install it (Debian: python3 python3-venv) or say make PYTHON=/path/to/python $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[onnx,dev]'
	@touch $@

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .cache build
