# make help  lists the targets.   Variables you may set: PYTHON, TORCH, TORCH_INDEX, EXTRAS, PY, JOBS, ARGS.

PYTHON      ?= python3
TORCH       ?= torch==2.13.0
TORCH_INDEX ?=
EXTRAS      ?= bnb,bench,dev
VENV        := .venv
# nproc would answer with an OMP_NUM_THREADS of yours.
JOBS        ?= $(shell env -u OMP_NUM_THREADS nproc 2>/dev/null || echo 2)
ARGS        ?=

# PY=/some/python runs a target with an environment of your own; then .venv is not built.
ifeq ($(origin PY),undefined)
PY    := $(VENV)/bin/python
READY := setup
else
READY :=
endif

# The sources of both packages, for targets that also run where neither is installed.
SOURCES := PYTHONPATH=src:trainer/src

# One thread per process: results repeat, and two runs on a small machine do not fight for cores.
RUN := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(PY)

# Threads that wait sleep soon. Beside another busy process long spins make the demo three times slower and more;
# without any it takes two thirds longer where nobody else is.
CALM := GOMP_SPINCOUNT=1000

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup demo test lint types tests test-slow test-trainers test-gpu gpu bench sanitize dist site clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' Makefile

setup: ## build .venv (does nothing when it is up to date)
	@PYTHON="$(PYTHON)" TORCH="$(TORCH)" TORCH_INDEX="$(TORCH_INDEX)" EXTRAS="$(EXTRAS)" \
	    scripts/setup_env.sh "$(VENV)"

demo: $(READY) ## teach a diffusion model to draw cat faces; results in runs/demo
	@$(CALM) $(SOURCES) $(PY) -m automagic_cameamp demo $(ARGS)

test: lint types tests ## everything CI runs: lint, type check, tests, README code blocks

lint: $(READY) ## ruff
	@$(PY) -m ruff check . && echo "lint: ok"

types: $(READY) ## pyright
	@$(PY) -m pyright --pythonpath "$$($(PY) -c 'import sys; print(sys.executable)')"

tests: $(READY)
	@$(RUN) -m pytest -n $(JOBS) $(ARGS)

test-slow: $(READY) ## the combinations that `make test` leaves out: twenty minutes and more
	@$(RUN) -m pytest -n $(JOBS) -m slow $(ARGS)

test-trainers: ## real training programs, each in an environment of its own (ARGS=--list says which)
	@$(PYTHON) scripts/test_trainers.py --torch "$(TORCH)" $(ARGS)

test-gpu: $(READY) ## the tests that need a CUDA device
	@$(RUN) -m pytest tests/gpu $(ARGS)

gpu: $(READY) ## everything that needs a GPU: tests, benchmark rows, memory checks (ARGS=--list says what)
	@$(RUN) scripts/gpu.py $(ARGS)

bench: $(READY) ## every benchmark, briefly (ARGS=--full: the rows that the documentation quotes)
	@$(SOURCES) $(PY) benchmarks/run_all.py $(ARGS)

sanitize: $(READY) ## the CPU kernels under the address, undefined-behaviour and thread sanitizers (gcc)
	@PYTHONPATH=src $(PY) scripts/sanitize.py $(ARGS)

dist: $(READY) ## sdist and wheels in dist/: built, checked, installed, stepped (ARGS="--torch 2.6.0 2.14.1")
	@$(PY) scripts/need.py release && $(PY) scripts/dist.py $(ARGS)

site: $(READY) ## the documentation as a site in site/, links strict (ARGS=--serve shows it)
	@$(PY) scripts/need.py docs && $(PY) scripts/site.py $(ARGS)

clean: ## remove .venv, caches, builds and runs
	rm -rf $(VENV) .venv-trainers build dist site runs .pytest_cache .ruff_cache .hypothesis src/*.egg-info
	rm -rf trainer/build trainer/dist trainer/src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
