# Every target installs what it needs into a virtual environment in .venv, with Python 3.11 or later.
PYTHON ?= python3
VENV ?= .venv
OUT ?= out
SOURCE ?=
# Images of containers often set it. Without bytecode on disk, each process compiles thousands of modules of its libraries.
unexport PYTHONDONTWRITEBYTECODE
BIN := $(VENV)/bin
# The lowest version of transformers that pyproject.toml allows, in a folder that precedes the other packages.
LOWEST := $(shell sed -n 's/.*"transformers>=\([0-9.]*\).*/\1/p' pyproject.toml)
ON_LOWEST := PYTHONPATH="$(abspath $(VENV))/lowest" $(BIN)/python
# These run in processes of their own: after OpenVINO has run, a data loader that forks workers can crash.
EXPORT_TESTS := tests/modeling_biomedclip/test_export.py tests/run_scripts/test_export.py

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-all test-lowest install-all lint types docs format clean mutation

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

quickstart: $(VENV)/.core  ## Build, train, evaluate, save and load a small model in OUT=out
	$(BIN)/biomedclip quickstart --output-dir "$(OUT)" --overwrite true $(if $(SOURCE),--source "$(SOURCE)")

test: $(VENV)/.test  ## Run the fast tests
	$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-all: $(VENV)/.sentence_transformers $(VENV)/.gradio  ## Run all tests
	$(BIN)/python tests/transformers_suite/source_archive.py
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(EXPORT_TESTS:%=--ignore=%)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(EXPORT_TESTS)

test-lowest: $(VENV)/.lowest  ## Run tests of model and processor on the lowest supported transformers
	$(ON_LOWEST) -c 'import transformers as t; assert f"{t.__version__}.".startswith("$(LOWEST)."), t'
	$(ON_LOWEST) tests/transformers_suite/source_archive.py
	$(ON_LOWEST) -m pytest --numprocesses 2 tests/transformers_suite tests/processing/test_processor.py \
		tests/processing/test_image_processor.py tests/modeling_biomedclip/test_modeling.py \
		tests/modeling_biomedclip/test_transformers_features.py tests/modeling_biomedclip/test_zero_shot_classifier.py \
		tests/modeling_biomedclip/test_equality_with_open_clip.py tests/modeling_biomedclip/test_conversion.py \
		tests/modeling_biomedclip/test_remote_code.py tests/modeling_biomedclip/test_embedding.py

mutation: $(VENV)/.mutation  ## Measure how many small faults in core modules the tests notice (one to two hours)
	$(BIN)/python tests/mutation/run.py

install-all: $(VENV)/.dev $(VENV)/.docs $(VENV)/.sentence_transformers $(VENV)/.gradio $(VENV)/.lowest
install-all:  ## Install all that the checks need

lint: $(VENV)/.dev types  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy does not know setuptools' mapping of folders to packages. It sees the package as a folder of links.
types: $(VENV)/.dev
	rm -rf "$(VENV)/typing" && mkdir -p "$(VENV)/typing/biomedclip"
	ln -s "$(CURDIR)"/modeling_biomedclip/* "$(CURDIR)/processing" "$(CURDIR)/run_scripts" "$(CURDIR)/model_cards" \
		"$(VENV)/typing/biomedclip/"
	MYPYPATH="$(VENV)/typing" $(BIN)/mypy

docs: $(VENV)/.docs  ## Build the documentation into docs/_build/html
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

format: $(VENV)/.dev  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove the virtual environment and caches
	rm -rf $(VENV) build .pytest_cache .ruff_cache .mypy_cache *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "biomedclip needs Python 3.11 or later; use make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --upgrade pip

$(VENV)/.core: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -qq --editable .
	@touch $@

$(VENV)/.mutation: pyproject.toml | $(VENV)/.test
	$(BIN)/python -m pip install -qq --no-compile --editable '.[mutation]'
	@touch $@

$(VENV)/.test $(VENV)/.dev $(VENV)/.docs: $(VENV)/.%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -qq --no-compile --editable '.[$*]'
	@touch $@

# The lowest version that loads saved models, in a folder that precedes the other packages in its tests.
$(VENV)/.sentence_transformers: pyproject.toml | $(VENV)/.test
	rm -rf $(VENV)/sentence_transformers_5.7
	$(BIN)/python -m pip install -qq --no-compile --no-deps --target $(VENV)/sentence_transformers_5.7 'sentence-transformers==5.7.*'
	@touch $@

# Gradio asks for a Pillow below 13, and works with the newest one.
$(VENV)/.gradio: pyproject.toml | $(VENV)/.test
	$(BIN)/python -m pip install -qq --no-compile --no-deps 'gradio==6.31.*' 'gradio_client==2.7.2' brotli groovy hf-gradio \
		orjson pydub pytz safehttpx semantic-version 'tomlkit<0.15' 'audioop-lts; python_version >= "3.13"'
	@touch $@

# It needs an older huggingface_hub, which needs httpx.
$(VENV)/.lowest: pyproject.toml | $(VENV)/.test
	rm -rf $(VENV)/lowest
	$(BIN)/python -m pip install -qq --no-compile --no-deps --target $(VENV)/lowest 'transformers==$(LOWEST)' \
		'huggingface_hub<2' httpx httpcore h11 anyio
	@touch $@
