# make deploy: set up and run the main job.  make test: set up and run the tests.  make check: lint, types, tests.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
MODEL  ?= aff_resnet_digits
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: deploy test test-slow lint check clean
.DELETE_ON_ERROR:

deploy: $(VENV)/.cpu
	$(BIN)/aff-deploy deploy $(MODEL) -o build/$(MODEL)

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -q

# Minutes and gigabytes: speaker networks through both exporters, models over 2 GB.
test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -q -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python scripts/mend_stubs.py .stubs
	$(BIN)/mypy

check: lint test

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .stubs

# Stamps, so that a second run installs nothing. The build backend goes in first and isolation is off: that way it is
# pinned too. Without what they ask for go in: the stubs, which would bring TensorRT itself, and a test's networks.
# torch is named beside the package so that pip sees the pinned version before any other requirement.
$(VENV)/.cpu: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || \
	  { echo "error: Python 3.10 to 3.13 is needed; try make PYTHON=python3.12" >&2; exit 4; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (some minutes the first time)"
	@$(PIP) hatchling setuptools
	@$(PIP) --no-build-isolation torch==2.13.0 --editable '.[cpu,rtx]'
	@touch $@

$(VENV)/.dev: $(VENV)/.cpu
	@$(PIP) --no-build-isolation torch==2.13.0 --editable '.[cpu,rtx,dev]'
	@$(PIP) --no-deps tensorrt-stubs speakerlab-slim
	@touch $@
