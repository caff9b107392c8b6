# Everything goes through .venv, which bootstrap.py makes and keeps up to date. `make help` lists the targets.

# A Python that the course supports: the first of these that answers.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
  $$p bootstrap.py --check >/dev/null 2>&1 && echo $$p && break; done)
VENV ?= .venv
export VENV
BIN := $(VENV)/bin
ARGS ?=
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q
NBVAL := $(PYTEST) --nbval-sanitize-with authoring/nbval.cfg --nbval-current-env

.DEFAULT_GOAL := help
.PHONY: help setup lab test test-slow build lint format kernels bench screenshots lock site clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:
	@$(or $(PYTHON),python3) bootstrap.py

lab: setup  ## set everything up and open JupyterLab on lesson 00 (ARGS=--no-browser prints the address)
	@$(BIN)/ssmcourse doctor || echo "lab: opening JupyterLab all the same"
	@$(BIN)/ssmcourse lab $(ARGS)

test: setup  ## the tests: the code, the grader, the lessons, the exercises, the browser (minutes)
	$(PYTEST) tests -m "not slow" $(ARGS)
	$(NBVAL) --nbval notebooks solutions
	$(NBVAL) --nbval-lax exercises

test-slow: setup  ## what takes longer than a few seconds a test
	$(PYTEST) tests -m slow $(ARGS)

build: setup  ## notebooks/, exercises/, solutions/ from authoring/ (ARGS=01 for one chapter)
	@$(BIN)/python authoring/build.py $(ARGS)

lint: setup  ## ruff and the type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python authoring/typecheck.py

format: setup  ## let ruff rewrite the layout of the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

kernels: setup  ## compile the GPU kernels for GPUs that are not here (ARGS=ssd for those of that name)
	@$(BIN)/python benchmarks/kernels.py $(ARGS)

bench: setup  ## measure what the lessons quote; results go to benchmarks/results/
	@for b in $(filter-out benchmarks/record.py benchmarks/gpu.py benchmarks/kernels.py,$(wildcard benchmarks/*.py)); do echo "== $$b"; OMP_NUM_THREADS=1 $(BIN)/python $$b || exit 1; done

screenshots: setup  ## photograph the explorables for the README
	@$(BIN)/python authoring/screenshots.py

lock: setup  ## write requirements.lock anew from what .venv holds
	@$(BIN)/python authoring/lock.py

site: setup  ## the lessons and solutions as web pages in build/site/
	@$(BIN)/python authoring/site.py

clean:  ## remove the environment and what was built beside the tracked files; work/ and your progress stay
	rm -rf $(VENV) build dist *.egg-info
