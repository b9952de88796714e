# make demo, make test and make lint install themselves into .venv on their first run.
# On a machine without a GPU the small build of torch can be had by
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make demo

PYTHON ?= python3
JOBS ?= 2

export OMP_NUM_THREADS ?= 1
pytest = .venv/bin/python -m pytest -n $(JOBS)

.PHONY: help demo test test-all lint bench

help:  ## print this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' Makefile | expand -t 16

demo: .venv/.installed  ## train the three stages on real photographs and restore with them (about ten minutes, two cores)
	OMP_NUM_THREADS=$(JOBS) .venv/bin/bdg pack pkg://datamodules/photographs runs/photographs parts=photographs
	OMP_NUM_THREADS=$(JOBS) .venv/bin/bdg pipeline experiment=demo
	OMP_NUM_THREADS=$(JOBS) .venv/bin/bdg restore runs/demo/degraded runs/demo/restored

test: .venv/.installed  ## run the quick tests
	$(pytest) -m "not slow and not slurm and not browser and not gpu"

test-all: .venv/.installed  ## run all tests but those that need a GPU
	$(pytest) -m "not gpu"

lint: .venv/.installed  ## check style and types
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

bench: .venv/.installed  ## measure the MAS-GLCM and the network on this machine
	.venv/bin/python benchmarks/glcm.py
	.venv/bin/python benchmarks/network.py

# An installation that was interrupted leaves .installing behind and is begun anew.
.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "BDG needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + ": name another one by make PYTHON=python3.11")'
	@if [ -e .venv/.installing ]; then rm -rf .venv; fi
	$(PYTHON) -m venv .venv
	@touch .venv/.installing
	.venv/bin/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@mv .venv/.installing $@
