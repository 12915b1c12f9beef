# make demo: an environment, then the main job.  make test: an environment, then lint, types and tests.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint env faults parity vllm vllm-env clean

demo: .venv/ready
	$(BIN)/stockpot train

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

lint: .venv/ready
	$(BIN)/ruff format --check --quiet src tests bench || $(BIN)/ruff format --diff --quiet src tests bench | head -40
	$(BIN)/ruff check src tests bench
	$(BIN)/mypy

env: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "stockpot needs Python 3.11 or newer: make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,plots]'
	touch $@

# Processes of Ray runs killed at random moments, twenty times each.
faults: .venv/ready
	OMP_NUM_THREADS=1 STOCKPOT_FAULTS=1 $(BIN)/python -m pytest tests/test_ray_faults.py

# Numbers against TRL and verl, in an environment of their own.
parity: .venv-parity/ready
	OMP_NUM_THREADS=1 PYTHONPATH=src .venv-parity/bin/python -m pytest -W ignore --confcutdir tests/parity tests/parity

.venv-parity/ready: constraints-parity.txt
	$(PYTHON) -m venv .venv-parity
	.venv-parity/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-parity.txt torch
	.venv-parity/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-parity.txt trl verl accelerate datasets pytest
	touch $@

# The vLLM sampler, in an environment of its own: vLLM names its torch to the last digit. The list is whole and goes in
# as it stands, without what vLLM only asks for on a GPU (triton) or breaks on a CPU (torchvision and its kin).
vllm: vllm-env
	OMP_NUM_THREADS=1 .venv-vllm/bin/python -m pytest -W ignore --confcutdir tests/with_vllm tests/with_vllm

vllm-env: .venv-vllm/ready

.venv-vllm/ready: constraints-vllm.txt pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r constraints-vllm.txt
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	.venv-vllm/bin/python -c 'from vllm import LLM' > /dev/null
	touch $@

clean:
	rm -rf .venv .venv-parity .venv-vllm build src/*.egg-info
