# `make search` runs the default study, `make test` the whole suite, `make quick` answers in about a minute. All make .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: search test quick style lint sanitize clean

search: $(VENV)/.installed
	$(BIN)/python -m harness.search $(ARGS)

test: style
	@$(BIN)/mypy & types=$$!; $(BIN)/python -m pytest -n auto --dist worksteal $(ARGS); tests=$$?; \
	  wait $$types && exit $$tests

quick: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow and not slow_room" $(ARGS)

style: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lint: style
	$(BIN)/mypy

sanitize: $(VENV)/.installed-dev
	$(BIN)/python tests/sanitize.py $(ARGS)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "headrace needs Python 3.11 or newer; $(PYTHON) is older. Run: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

NATIVE := $(wildcard engine/native/*.[ch]pp engine/native/*/*.[ch]pp)

$(VENV)/.installed: pyproject.toml setup.py $(NATIVE) | $(VENV)/bin/python
	@$(BIN)/python engine/native/compiler.py
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml setup.py $(NATIVE) | $(VENV)/bin/python
	@$(BIN)/python engine/native/compiler.py
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV)
