# Everything a fresh machine needs: `make demo` runs the main job, `make test` checks the project.
PYTHON ?= python3
# Where to take torch from, if not from pip's own index: one of CPU builds leaves out several gigabytes of CUDA.
TORCH_INDEX ?=

# How many processes `make test` spreads over: some tests start processes of their own, so not as many as there are cores.
TEST_PROCESSES ?= 2

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := fengwu_ghr benchmarks tests $(wildcard pipelines)

.PHONY: help install demo test test-full lint bench clean
.DEFAULT_GOAL := help

help:  ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP)  ## .venv with the package and its test tools, at the versions of constraints.txt

# torch goes first: an index of CPU builds, where one is given, offers a local version that pip prefers.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c constraints.txt torch
	$(BIN)/python -m pip install -c constraints.txt -e '.[test]'
	touch $@

demo: install  ## the whole chain on an embedded input; products in demo-output/
	$(BIN)/fengwu-ghr demo --output demo-output

lint: install  ## style and types
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy fengwu_ghr $(wildcard pipelines)

test: lint  ## style, types and the tests of seconds
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

test-full: lint  ## every test, the slow ones and the true 0.09-degree grid included
	$(BIN)/python -m pytest -m ""

bench: install  ## the README's numbers
	$(BIN)/python -m pip install -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks

clean:  ## remove the environment, caches and the demo's products
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache demo-output
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
