# make demo | test | check | bench | bench-compare: each sets up its own virtual environment in .venv first.
PYTHON ?= python3
VENV ?= .venv
# Another build of torch (a CPU-only one is much smaller): make demo TORCH="torch torchvision --index-url ..."
TORCH ?= torch torchvision
# Extras of the test environment; with gobject (which is compiled) the tests of GStreamer and Aravis cameras run too.
EXTRAS ?= dev
BIN := $(VENV)/bin

.PHONY: demo test check bench bench-compare clean

demo: $(VENV)/.demo
	$(BIN)/rdedge demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/frame_to_verdict.py

bench-compare: $(VENV)/.dev
	$(BIN)/python benchmarks/compare_trees.py $(BENCH_ARGS)

clean:
	rm -rf $(VENV) rdedge-demo

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV) || { echo "no venv module: on Debian, apt-get install python3-venv" >&2; exit 1; }

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[export]'
	touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	touch $@ $(VENV)/.demo
