# One environment in .venv, made on the first call of any target and quick afterwards.
# The system's own Python before another on the PATH, where it can make environments: distributions
# build with profile-guided optimisation, pyenv does not, and PySyft takes half as long again there.
PYTHON ?= $(shell for python in /usr/bin/python3.11 python3.11 python3; do \
  $$python -c 'import ensurepip, venv' 2>/dev/null && command -v $$python && break; done)
TORCH_VERSION ?= 2.13.0
# The usual Linux build of torch is CUDA and several GB; for a GPU, give the index that has it.
TORCH_INDEX_URL ?= https://download.pytorch.org/whl/cpu
PIP_AUDIT_VERSION ?= 2.10.1
BIN := .venv/bin
AUDIT := .venv/audit/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help demo test coverage chaos containers lint audit format bench clean

help: ## Say what can be made
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

demo: .venv/base ## Three live datasites, a federated run on sample data, a table of results
	$(BIN)/orchestrator testbed demo

TEST := $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

test: .venv/dev .venv/helm/4/helm ## All tests, with live PySyft servers among them
	$(TEST) $(PYTEST_ARGS)

# Of its own: tests that compute take half as long again while their lines are counted.
coverage: .venv/dev .venv/helm/4/helm ## The same, and which lines of the code they reach
	$(TEST) --cov --cov-report=term:skip-covered $(PYTEST_ARGS)

# Chaos: about half an hour on two cores.
chaos: .venv/dev ## Two hundred ways to kill, freeze and cut off live sites and their orchestrator
	$(BIN)/pytest -m "" tests/chaos $(PYTEST_ARGS)

lint: .venv/dev ## Format check, ruff, mypy --strict
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# In an environment of its own: what pip-audit needs is not to move what is audited.
audit: .venv/dev ## Known advisories against the pinned packages; reasoned ignores in .ci/
	@test -x $(AUDIT)/pip-audit || { $(PYTHON) -m venv .venv/audit && $(AUDIT)/python -m pip \
	  --disable-pip-version-check --quiet install pip-audit==$(PIP_AUDIT_VERSION); } || true
	@$(BIN)/python .ci/audit.py $(AUDIT)/pip-audit

containers: .venv/dev ## The tests over containers; they need a Docker engine with compose
	$(BIN)/pytest -m containers tests/containers $(PYTEST_ARGS)

format: .venv/dev ## Format the code, mend what ruff can mend, stamp the image with the code's hash
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	sed -i.bak "s/^ARG CODE_HASH=.*/ARG CODE_HASH=$$($(BIN)/python -c 'from core.codehash import installed_code_hash; print(installed_code_hash())')/" deploy/Dockerfile && rm deploy/Dockerfile.bak

bench: .venv/dev ## The claims about speed and learning, measured here
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/learning.py

clean: ## Remove the environment and what tools left behind
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage build *.egg-info

.venv/torch:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' \
	  || { echo "Python 3.11 or 3.12 is needed, found: $$($(PYTHON) --version); set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv .venv
	@echo "installing torch $(TORCH_VERSION) (a wheel on this machine, else from $(TORCH_INDEX_URL))"
	@$(PIP) install --no-deps --no-index torch==$(TORCH_VERSION) 2>/dev/null \
	  || $(PIP) install --no-deps --index-url $(TORCH_INDEX_URL) torch==$(TORCH_VERSION)
	@touch $@

.venv/base: .venv/torch pyproject.toml constraints.txt
	@echo "installing the project and what it needs (some minutes the first time)"
	@$(PIP) install --editable . --constraint constraints.txt
	@touch $@

.venv/dev: .venv/base
	@echo "installing what tests, lint and benchmarks need"
	@$(PIP) install --editable '.[test,lint,bench]' --constraint constraints.txt
	@touch $@

# For the tests of the chart, which say so where it cannot be had.
.venv/helm/4/helm: tests/deploy/fetch_helm.py | .venv/base
	@$(BIN)/python tests/deploy/fetch_helm.py || true
