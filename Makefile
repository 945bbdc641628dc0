# Everything a developer, a reader of the README or CI runs. `make` alone lists it.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
VLLM_BIN := .venv-vllm/bin
VLLM_READY := .venv-vllm/.ready
# Apart from the lock because the machine decides which build it gets, CPU or CUDA; the lock holds everything else.
TORCH := torch==2.13.0
# Where `make lock` keeps uv: it must work when the old lock no longer makes a .venv.
LOCKER := .venv-lock
# A second torch thread makes tiny models an order of magnitude slower on a busy machine.
ONE_THREAD := OMP_NUM_THREADS=1

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test lab test-vllm check format lock wheel clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

setup: $(READY)  ## make .venv with the locked packages and rlaif itself, editable

$(READY): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rlaif needs Python 3.11 or newer: make setup PYTHON=...")'
	@echo "setup: .venv"
	@$(PYTHON) -m venv .venv
	@echo "setup: $(TORCH)"
	@$(BIN)/pip install -qq $(TORCH)
	@echo "setup: the packages of requirements.lock"
	@$(BIN)/pip install -qq --require-hashes --no-deps -r requirements.lock
	@echo "setup: rlaif, editable"
	@$(BIN)/pip install -qq --no-build-isolation --no-deps -e .
	@$(BIN)/pip check || { echo "requirements.lock does not fit pyproject.toml: run make lock"; exit 1; }
	@touch $@

quickstart: setup  ## prompts to a measured, trained model on this machine, in minutes
	$(BIN)/rlaif run pipelines/quickstart.yaml

test: setup  ## the tests, without those marked lab or vllm
	$(ONE_THREAD) $(BIN)/pytest -q --numprocesses 2 --dist loadfile

lab: setup  ## the tests that train until an effect shows
	$(ONE_THREAD) $(BIN)/pytest -q -m lab

test-vllm: $(VLLM_READY)  ## the tests of the vLLM engine, on CPU, in an environment of its own of 3 GB
	$(ONE_THREAD) $(VLLM_BIN)/pytest -q -m vllm

# No `pip check` here: it would miss what requirements-vllm.lock leaves out on purpose.
$(VLLM_READY): pyproject.toml requirements-vllm.lock
	@echo "test-vllm: .venv-vllm"
	@$(PYTHON) -m venv .venv-vllm
	@echo "test-vllm: $(TORCH)"
	@$(VLLM_BIN)/pip install -qq $(TORCH)
	@echo "test-vllm: the packages of requirements-vllm.lock"
	@$(VLLM_BIN)/pip install -qq --require-hashes --no-deps -r requirements-vllm.lock
	@echo "test-vllm: rlaif, editable"
	@$(VLLM_BIN)/pip install -qq --no-build-isolation --no-deps -e .
	@touch $@

# The last step downloads nothing, so it succeeds only if what the lock installed satisfies every requirement.
check: setup  ## lint, format, types, layers, and whether the lock fits pyproject.toml
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/pip install -qq --dry-run --no-index --no-build-isolation -e '.[train,schema,verify,dev]' \
		|| { echo "requirements.lock does not fit pyproject.toml: run make lock"; exit 1; }

format: setup  ## sort imports, fix what ruff can fix, format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock:  ## resolve requirements.lock anew; pins that still fit stay, but for UPGRADE=--upgrade
	@$(PYTHON) -m venv $(LOCKER)
	@$(LOCKER)/bin/pip install -qq 'uv>=0.13,<0.14'
	$(LOCKER)/bin/uv pip compile -q $(UPGRADE) --universal --python-version 3.11 --extra train --extra schema --extra verify --extra dev \
		--generate-hashes --no-emit-package torch --custom-compile-command "make lock" --output-file requirements.lock pyproject.toml

wheel: setup  ## sdist and wheel in dist/
	$(BIN)/python -m build --no-isolation

clean:  ## remove what the tools left, not .venv and not runs/
	rm -rf dist .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis $(LOCKER)
	find rlaif tests -name __pycache__ -prune -exec rm -rf {} +
