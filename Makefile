# Two commands do everything on a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
# Installed first and alone, so that no looser range elsewhere picks another build.
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
DEBIAN := espeak-ng dataset-fashion-mnist

.PHONY: quickstart install install-test debian test lint types clean

quickstart: install
	$(BIN)/outmodal quickstart

install: $(VENV)/.installed

$(VENV)/.installed: setup.py pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

install-test: $(VENV)/.installed-test

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test]"
	touch $@

# Real images and the speech synthesiser for the builder's tests.
debian:
	@missing=""; for p in $(DEBIAN); do dpkg -s $$p >/dev/null 2>&1 || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
	  sudo=""; [ "$$(id -u)" = 0 ] || sudo="sudo -n"; \
	  $$sudo apt-get update -qq && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $$missing >/dev/null \
	  || { echo "the tests need the Debian packages$$missing: install them and repeat" >&2; exit 1; }; \
	fi

test: install-test debian
	$(BIN)/python -m pytest

lint: install-test
	$(BIN)/ruff check src tests setup.py
	$(BIN)/ruff format --check src tests setup.py

types: install-test
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist src/*.egg-info .mypy_cache .ruff_cache .hypothesis
