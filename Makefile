# Two commands do all the set-up: `make quickstart` and `make test`. Plain pip commands for both are in the README.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: quickstart test lint clean

quickstart: $(VENV)/.train
	$(BIN)/edgetune run recipes/quickstart.toml

test: $(VENV)/.dev lint
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check edgetune tests benchmarks
	$(BIN)/ruff format --check edgetune tests benchmarks
	$(BIN)/mypy

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.train: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install -q -e '.[train]'
	touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install -q -e '.[dev]'
	touch $@ $(VENV)/.train

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache
