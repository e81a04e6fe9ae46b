# make demo   the whole path on real data: environment, shards, tokenizers, generators, scores, runs/demo/report.html
# make test   the laws and contracts (`make check` runs them too; `make test-slow` the long ones)
# make help   the other targets

VENV   ?= .venv
PYTHON ?= python3
# extra arguments for pip, e.g. PIP_ARGS='--index-url https://download.pytorch.org/whl/cpu --extra-index-url https://pypi.org/simple'
PIP_ARGS ?=
# other cases: ATTACK='seed=1 share=3', one format: ATTACK="format='index.json'"
ATTACK ?=
# other days: FUZZ='seed=1 cases=400', one of them: FUZZ='case=17'
FUZZ   ?=
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# another sample: MUTANTS='seed=1 count=100', a file's all: MUTANTS='file=order/paths'
MUTANTS ?=
# the oldest torch that varlab works with
TORCH29 := .venv-torch29
# another interpreter for gpu-check, which then installs nothing: GPU_PYTHON=python3 where torch with CUDA is already there
GPU_PYTHON ?=
# Two test processes on two cores get one thread each; more threads would wait for each other.
ON_GPU  = CUBLAS_WORKSPACE_CONFIG=:4096:8 OMP_NUM_THREADS=1 PYTHONPATH="$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}"
PYTEST  = OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help env demo report docs test test-slow attack fuzz mutants numerics slurm-test gpu-check check format clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

env: $(STAMP)  ## make the environment in .venv, with the tested versions

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "varlab needs Python 3.11 or newer: install python3, or name it with PYTHON=…" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "varlab needs Python 3.11 or newer; $(PYTHON) is older: name a newer one with PYTHON=…" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments here: install python3-venv (on Debian and Ubuntu: apt-get install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: env  ## run the main job, end to end, on real data
	PATH="$(abspath $(BIN)):$$PATH" bash experiments/demo/run.sh

report: env  ## write one page about everything under runs/
	$(BIN)/varlab report runs out=runs/report/all

docs: env  ## build the pages of docs/ as a site: open site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

test: env  ## run the tests of every law and contract
	$(PYTEST) -n 2 --dist worksteal -m "not slow and not slurm"

test-slow: env  ## run the tests that take minutes: whole studies, twenty random kills, trainings and stops of several ranks
	$(BIN)/python -m pytest -m "slow and not slurm"

attack: env  ## damage every format that varlab reads, thousands of times: nothing may be wrong without a word, hang, run or be written elsewhere
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m tests.attack $(ATTACK)

fuzz: env  ## play hundreds of days of people with odd files, killed commands and full disks: each ends right or in one sentence
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m tests.fuzz $(FUZZ)

mutants: env  ## change the science rooms in 300 small wrong ways, each of which a test must notice (up to two hours)
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m tests.mutants $(MUTANTS)

numerics: env $(TORCH29)/.installed  ## run the numeric tests under every instruction set, one and two threads, torch 2.9 and 2.13
	$(BIN)/python tests/numerics.py $(BIN)/python $(TORCH29)/bin/python

$(TORCH29)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(TORCH29)
	grep -vE '^torch(vision)?==' constraints.txt > $(TORCH29)/constraints.txt
	$(TORCH29)/bin/python -m pip install --quiet $(PIP_ARGS) --constraint $(TORCH29)/constraints.txt torch==2.9.1 torchvision==0.24.1 --editable '.[dev]'
	@touch $@

slurm-test: env  ## start a real Slurm of two nodes here (Debian, root) and test sweeps, preemption, kills
	@(for c in slurmctld slurmd slurmdbd munged mariadbd; do command -v $$c >/dev/null || exit 1; done) || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge slurmdbd mariadb-server; }
	$(PYTEST) -m slurm tests/slurm

gpu-check: $(if $(GPU_PYTHON),,env)  ## compare one CUDA device with the CPU, then measure it: training, sampling, scores, golden files
	$(ON_GPU) $(or $(GPU_PYTHON),$(BIN)/python) -m pytest -q -m gpu tests/gpu
	$(ON_GPU) SET=card DEVICE=cuda PRECISIONS=bf16-mixed PYTHON="$(or $(GPU_PYTHON),$(BIN)/python)" bash experiments/speed/run.sh

check: env  ## check style and types, and run the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST) -n 2 --dist worksteal -m "not slow and not slurm"

format: env  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove caches and builds, but not runs/ and .venv
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find varlab tests experiments -name __pycache__ -type d -prune -exec rm -rf {} +
