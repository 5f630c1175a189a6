# make deploy: set up and run the main job.  make test: set up and run the tests.  make check: lint, types, tests.
# make format: put the style right.  make test-plugins: the C++ part alone.  make dist: the files of a release.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
MODEL  ?= aff_resnet_digits
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

CPP    := $(shell find plugins/launcher plugins/plugin plugins/tests -name '*.cpp' -o -name '*.h')
TEXT   := .github docs models *.md *.toml *.txt Makefile

.PHONY: deploy test test-slow test-plugins lint style types format check dist clean
.DELETE_ON_ERROR:

deploy: $(VENV)/.cpu
	$(BIN)/aff-deploy deploy $(MODEL) -o build/$(MODEL)

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -q

# Minutes and gigabytes: speaker networks through both exporters, models over 2 GB.
test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -q -m slow

# As users build it; the tests of `make test` build it under sanitizers. Needs no Python.
test-plugins:
	cmake -S plugins -B build/plugins -DCMAKE_BUILD_TYPE=Release
	cmake --build build/plugins --parallel 2
	ctest --test-dir build/plugins --output-on-failure

lint: style types

style: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	! grep -rnI '[[:blank:]]$$' $(TEXT)

types: $(VENV)/.dev
	$(BIN)/python scripts/mend_stubs.py .stubs
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

check: lint test

# twine has an environment of its own: nothing else needs it or what it brings.
dist: $(VENV)/.dev
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist
	test -x build/twine/bin/twine || $(BIN)/python -m venv build/twine
	build/twine/bin/pip --disable-pip-version-check install --quiet twine==7.0.0
	build/twine/bin/twine check --strict dist/*

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
