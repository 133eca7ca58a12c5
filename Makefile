# Two commands do all the set-up: `make quickstart` and `make test`. Plain pip commands for both are in the README.
# Versions are those of constraints.txt, so that every machine has the same; `make upgrade` renews the file.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install -q -c constraints.txt
# One process a core, each with one thread (tests/conftest.py).
PYTEST := $(BIN)/python -m pytest -n logical --dist worksteal

.PHONY: quickstart test test-all test-browser test-random test-newest lint upgrade benchmark clean

quickstart: $(VENV)/.train
	$(BIN)/edgetune run recipes/quickstart.toml

test: $(VENV)/.dev lint
	$(PYTEST) $(ARGS)

# The slow ones too.
test-all: $(VENV)/.dev lint
	$(PYTEST) -m 'not gpu and not network and not browser' $(ARGS)

# Pages in a real Chromium: `apt-get install chromium`, or CHROMIUM names the program.
test-browser: $(VENV)/.dev
	$(BIN)/python -m pytest -m browser tests/report/test_browser.py $(ARGS)

# In an order drawn anew each time; the seed is printed, and ARGS="-p randomly --randomly-seed=N" repeats it.
test-random: $(VENV)/.dev
	$(PYTEST) -p randomly $(ARGS)

# With the newest releases that pyproject.toml allows, in an environment of its own.
test-newest:
	rm -rf .venv-newest
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install -q -e '.[dev]'
	.venv-newest/bin/python -m pytest -n logical --dist worksteal $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check edgetune tests benchmarks
	$(BIN)/ruff format --check edgetune tests benchmarks
	$(BIN)/mypy

# Exact versions without the builds' local names (+cpu): the file is for every platform.
upgrade:
	rm -rf .venv-upgrade
	$(PYTHON) -m venv .venv-upgrade
	.venv-upgrade/bin/python -m pip install -q -e '.[dev,bench]'
	.venv-upgrade/bin/python -m pip freeze --exclude-editable | sed 's/+.*//' > constraints.txt
	rm -rf .venv-upgrade

# runs/benchmark keeps what is done, so that the next call goes on there. ARGS: --list, --only NAME, --full, --minutes 120 ...
benchmark: $(VENV)/.bench
	$(BIN)/python -m benchmarks.reproduce $(ARGS)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.train: $(BIN)/python pyproject.toml constraints.txt
	$(INSTALL) -e '.[train]'
	touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	$(INSTALL) -e '.[dev]'
	touch $@ $(VENV)/.train

$(VENV)/.bench: $(BIN)/python pyproject.toml
	$(INSTALL) -e '.[bench,lm-eval]'
	touch $@ $(VENV)/.train

clean:
	rm -rf $(VENV) .venv-newest .venv-upgrade runs .pytest_cache .mypy_cache .ruff_cache
