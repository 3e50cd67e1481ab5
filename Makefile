# Everything a person does with this checkout. `make` alone lists the verbs.
PYTHON ?= python3
BIN := .venv/bin
# An index of torch builds to take instead of pip's own: `make setup LATHE_TORCH_INDEX_URL=...`
LATHE_TORCH_INDEX_URL ?=
# Most tests wait for processes more than they compute: three at a time keep two cores busy. Files go in the
# order of tests/conftest.py, the long ones first, and not by how many tests they hold.
TEST_WORKERS ?= 3
IN_PARALLEL = -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder
# The tests start hundreds of processes, of which each would compile all that it imports of ours.
unexport PYTHONDONTWRITEBYTECODE
NO_GPU = $(shell nvidia-smi -L >/dev/null 2>&1 || echo yes)
# The chat page's tests drive a browser that is there; .ci/run installs one.
BROWSER = $(shell for name in chromium chromium-browser google-chrome; do command -v $$name; done; true)
# Trainings on a cluster need Ray, which is an extra; bases stored by GPTQ or AWQ another, which pins its own numpy.
RAY = $(wildcard .venv/lib/python3*/site-packages/ray/__init__.py)
GPTQ = $(wildcard .venv/lib/python3*/site-packages/gptqmodel/__init__.py)
DEEPSPEED = $(wildcard .venv/lib/python3*/site-packages/deepspeed/__init__.py)
NOT_HERE = $(if $(BROWSER),, and not browser)$(if $(RAY),, and not ray)$(if $(GPTQ),, and not gptq)$(if $(DEEPSPEED),, and not deepspeed)
SAY_WHAT_IS_LEFT_OUT = $(if $(BROWSER),,@echo "No Chromium here: the chat page's tests in a browser are left out (apt install chromium).")

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all lint types migrate clean

help: ## list these verbs
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' \
	  | awk -F'|' '{ printf "  make %-10s %s\n", $$1, $$2 }'

# Asked in words that any Python understands: older ones cannot even parse deploy/setup.py.
define REQUIRE_PYTHON
import sys
found = ".".join(str(part) for part in sys.version_info[:2])
if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    sys.exit("Lathe needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is %s: make setup PYTHON=python3.12" % found)
endef
export REQUIRE_PYTHON

setup: ## make .venv and build llama.cpp, once: about 7 minutes and 2.5 GB
	@$(PYTHON) -c "$$REQUIRE_PYTHON"
	@$(PYTHON) deploy/setup.py --torch-index-url "$(LATHE_TORCH_INDEX_URL)"

demo: setup ## train a model on examples/faq.csv, serve it, and ask it
	@$(BIN)/python -m cli.demo

test: setup ## run the tests that need no GPU and no patience
	$(SAY_WHAT_IS_LEFT_OUT)
	@$(BIN)/python -m pytest $(IN_PARALLEL) -m "not slow and not gpu$(NOT_HERE)"

test-all: setup ## run the long forms too, and those of a GPU where there is one
	$(SAY_WHAT_IS_LEFT_OUT)
	$(if $(RAY),,@echo "No Ray here: trainings on a cluster are left out (.venv/bin/pip install '.[ray]').")
	@$(BIN)/python -m pytest $(IN_PARALLEL) -m "(slow or not slow)$(if $(NO_GPU), and not gpu)$(NOT_HERE)"

lint: setup ## check style, formatting and the direction of imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports

types: setup ## check types, strictly
	@$(BIN)/mypy

migrate: setup ## bring the database that DATABASE_URL names up to date
	@$(BIN)/python -m migrations

clean: ## remove .venv and what tools left here (the data folder and the caches stay)
	rm -rf .venv build dist *.egg-info .hypothesis .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
