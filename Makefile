# `make demo` makes an image from a prompt on a fresh machine; `make test` runs every test. Needs python3 with venv.
# The .venv is made here with its own uv; what is in it follows uv.lock.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
# without these uv would look for another Python, or write into an environment that happens to be active;
# --inexact keeps what the other set of packages brought
SYNC := UV_PROJECT_ENVIRONMENT=$(CURDIR)/$(VENV) UV_PYTHON=$(CURDIR)/$(BIN)/python $(UV) sync --locked --inexact
unexport VIRTUAL_ENV
# nor is torch to be compiled again in each of the processes that a service and its tests start: with this variable,
# which container images like to set, a start of ComfyUI takes twice as long
unexport PYTHONDONTWRITEBYTECODE

PROMPT ?=
MODEL ?=
export PROMPT MODEL

.PHONY: help
help: ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo '  PROMPT="a red fox" MODEL=name make demo'

$(UV):
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info < (3, 14); sys.exit(None if ok else \
	  "$(PYTHON) is Python %d.%d, but 3.11, 3.12 or 3.13 is needed: name one with make PYTHON=python3.11" % sys.version_info[:2])'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make virtual environments: install python3-venv (apt-get install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

# One stamp a set of packages: nothing is asked of uv until the lock changes.
$(VENV)/.synced-run: $(UV) uv.lock pyproject.toml
	$(SYNC) --extra comfyui --extra overlay
	@touch $@

$(VENV)/.synced-dev: $(UV) uv.lock pyproject.toml Makefile
	$(SYNC) --extra comfyui --extra overlay --extra training --extra dev
	@touch $@ $(VENV)/.synced-run

.PHONY: setup
setup: $(VENV)/.synced-run ## install everything and fetch ComfyUI, without starting it
	@$(BIN)/imagegen setup

.PHONY: demo
demo: $(VENV)/.synced-run ## set up, start, make one image, print its path, stop
	@$(BIN)/imagegen demo --prompt "$$PROMPT" --model "$$MODEL" --out output/

.PHONY: up
up: $(VENV)/.synced-run ## run the service in the foreground (http://127.0.0.1:8005)
	@exec $(BIN)/imagegen up

.PHONY: lint
lint: $(VENV)/.synced-dev ## style, types, the order of the rooms, and what the ComfyUI registry refuses
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ruff check --isolated --select S102,S307,E702 custom_nodes
	PYTHONPATH=custom_nodes $(BIN)/lint-imports --no-logo --cache-dir .cache/import_linter
	$(BIN)/pyright

.PHONY: test
test: $(VENV)/.synced-dev ## run every test (set-up included)
	scripts/install-test-packages.sh
	for folder in . custom_nodes/neurolux; do \
	  (cd $$folder && DO_NOT_TRACK=1 $(CURDIR)/$(BIN)/comfy --skip-prompt node validate); done
	$(BIN)/imagegen setup
	$(MAKE) --no-print-directory --jobs 2 lint pytest

# Imported once, so that Python does not compile the same thousands of modules in each of the workers at the same time.
$(VENV)/.compiled: $(VENV)/.synced-dev
	$(BIN)/python -c 'import torch._dynamo, torchvision, tests.tiny_models, tests.tiny_adapters, tests.tiny_files'
	@touch $@

# Four workers on two cores: two of them mostly wait for processes.
.PHONY: pytest
pytest: $(VENV)/.synced-dev $(VENV)/.compiled
	$(BIN)/python -m pytest -n 4 --dist loadscope --no-loadscope-reorder --durations 20

MIRROR ?= http://deb.debian.org/debian
KEEP ?=

.PHONY: fresh-machine
fresh-machine: ## demo and test of HEAD in a bare Debian 12, as root with debootstrap: MIRROR=url KEEP=folder
	scripts/fresh-machine.sh --mirror "$(MIRROR)" $(if $(KEEP),--keep "$(KEEP)") $${PROMPT:+--prompt "$$PROMPT"}

.PHONY: bench
bench: $(VENV)/.synced-dev ## measure: overhead over raw ComfyUI, the nodes, the overlay's key
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.nodes
	scripts/install-test-packages.sh
	$(BIN)/python -m benchmarks.overlay

DRY ?=
SWEEP ?= 1

.PHONY: dry-run
dry-run: $(VENV)/.synced-dev ## execute the memory plans of all models on simulated cards: DRY="--every-mode --every-task" SWEEP=100
	$(BIN)/imagegen setup
	$(BIN)/imagegen plan --dry-run --all-cards $(DRY)
	$(BIN)/imagegen plan --dry-run --model sd15 --vram 8GB --ram 32GB --offload none --sweep $(SWEEP)

GPU ?=

.PHONY: gpu
gpu: $(VENV)/.synced-dev ## measure every plan on this machine's GPU, with random full-size weights: GPU="--models sdxl-lightning"
	$(BIN)/python -m benchmarks.gpu $(GPU)

JOBS ?= 1000
SEED ?= 1
FULL_DISKS ?= 0

.PHONY: soak
soak: $(VENV)/.synced-dev ## jobs while processes die, freeze and the disk fills: JOBS=1000 SEED=1 FULL_DISKS=0
	$(BIN)/python -m benchmarks.soak --jobs $(JOBS) --seed $(SEED) --full-disks $(FULL_DISKS)

.PHONY: workflows
workflows: $(VENV)/.synced-dev ## export workflows/api with ComfyUI's own front end, and what is made of the graphs
	scripts/install-test-packages.sh
	$(BIN)/python -m scripts.export_workflows
	$(BIN)/python -m scripts.draw_wiring
	$(BIN)/python -m scripts.make_blueprints

.PHONY: pot
pot: ## write the template of the overlay's translations, and bring the translations up to date
	scripts/install-test-packages.sh
	scripts/extract_texts.sh

.PHONY: clean
clean: ## remove the virtual environment and caches; models, images and ComfyUI stay (see `imagegen paths`)
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache dist
	find bridge custom_nodes overlay tests benchmarks scripts -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
