# make demo, make test and make lint install themselves into .venv on their first run. On a machine without a GPU, point
# PIP_EXTRA_INDEX_URL at PyTorch's index of CPU builds before, to be spared gigabytes of CUDA.

PYTHON ?= python3
EXPERIMENT ?= demo
JOBS ?= 2

pytest = OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n $(JOBS) --dist loadfile

.PHONY: help demo test test-slow lint chaos bench slurm-up slurm-down

help:  ## print this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' Makefile | expand -t 16

demo: .venv/.installed  ## train the three stages on real photographs and restore with them (some eleven minutes, two cores)
	.venv/bin/bdg pack pkg://datamodules/photographs runs/photographs parts=photographs
	.venv/bin/bdg pipeline experiment=$(EXPERIMENT)
	.venv/bin/bdg restore runs/$(EXPERIMENT)/degraded runs/$(EXPERIMENT)/restored weights=runs/$(EXPERIMENT)/weights.safetensors overwrite=true

test: .venv/.installed  ## run the quick tests
	$(pytest) -m "not slow and not slurm and not browser and not gpu"

test-slow: .venv/.installed  ## run the tests of several processes and minutes
	$(pytest) -m "(slow or slurm or browser) and not gpu"

lint: .venv/.installed  ## check style and types
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

chaos: .venv/.installed  ## kill a training of two processes fifty times and compare its end with the unbroken one
	.venv/bin/python benchmarks/chaos.py > benchmarks/chaos_$$(date +%F).md; status=$$?; cat benchmarks/chaos_$$(date +%F).md; exit $$status

bench: .venv/.installed  ## measure the MAS-GLCM and the network on this machine
	.venv/bin/python benchmarks/glcm.py
	.venv/bin/python benchmarks/network.py

slurm-up:  ## start a Slurm of two nodes on this machine, to try sweeps on (as root, on Debian 12)
	@$(PYTHON) tests/slurm/cluster.py up

slurm-down:  ## stop it
	@$(PYTHON) tests/slurm/cluster.py down

# An installation that was interrupted leaves .installing behind and is begun anew.
.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "BDG needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + ": name another one by make PYTHON=python3.11")'
	@if [ -e .venv/.installing ]; then rm -rf .venv; fi
	$(PYTHON) -m venv .venv
	@touch .venv/.installing
	.venv/bin/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@mv .venv/.installing $@
