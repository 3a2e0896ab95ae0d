# `make demo` and `make test` each work alone on a fresh clone: they make .venv and install into it once.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
# on all cores at once, and also where the environment forbids Python to keep bytecode: each worker would compile again
COMPILE := $(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null || true
RUNS := runs

.PHONY: install dev demo test test-slow lint format ui clean

install: $(VENV)/.installed
dev: $(VENV)/.dev

# torch first: its own pin keeps pip from choosing a CUDA build on machines that have a CPU build at hand
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e .
	$(COMPILE)
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(PIP) -e '.[dev]'
	$(COMPILE)
	touch $@

demo: install
	$(BIN)/python -m maestro_dist.train configs/quickstart.yaml

PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# one test of each promise, in ten minutes on two cores; the long ones are `make test-slow`
test: dev
	$(PYTEST) -m "not slow"

test-slow: dev
	$(PYTEST) -m slow

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

ui: install
	MLFLOW_DISABLE_TELEMETRY=true $(BIN)/mlflow ui --host 127.0.0.1 --backend-store-uri sqlite:///$(CURDIR)/$(RUNS)/mlflow.db

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache
