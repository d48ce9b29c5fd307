# The commands are those of `python -m study`, which does the same without make.
# QUICK=1, SEED=n, DATA=digits, MNIST_ROOT=folder and JOBS=n may be put before any of these.
.PHONY: run sweep quick test test-code test-notebooks report lab bench published mutate refresh lint hooks clean
PYTHON ?= python3
BIN := .venv/bin
# all of them, in an order in which none waits long for what another trains; each in quotes, for names with spaces
NOTEBOOKS ?= $(shell found=; for path in $(foreach number,02 03 01 06 05 04,notebooks/$(number)_*.ipynb) notebooks/*.ipynb; do \
	[ -e "$$path" ] || continue; case "$$found" in (*"'$$path'"*) ;; (*) found="$$found '$$path'";; esac; done; echo "$$found")
# what is named must be there, which is told before anything is installed
ifneq ($(filter run sweep refresh report test test-notebooks,$(or $(MAKECMDGOALS),run)),)
ifneq ($(origin NOTEBOOKS),file)
ABSENT := $(shell for path in $(NOTEBOOKS); do [ -e "$$path" ] || echo "$$path"; done)
ifneq ($(ABSENT),)
$(error NOTEBOOKS must name notebooks, got $(ABSENT): there are $(notdir $(wildcard notebooks/*.ipynb)))
endif
endif
endif
# JOBS notebooks, or tests, are executed at a time, each on one thread: faster than one after the other on
# all cores, the more so where others use them too; and the numbers do not depend on how many cores there are.
JOBS ?= 2
export OMP_NUM_THREADS ?= 1
# files and output are UTF-8, wherever this runs
export PYTHONUTF8 ?= 1
# a cluster's shell may ask for figures that nobody sees: notebooks show theirs inline
unexport MPLBACKEND
BENCH ?= report/bench

run: .venv/installed     ## execute every notebook and write the report; no committed file changes
	exec $(BIN)/python -m study run --jobs $(JOBS) $(NOTEBOOKS)

quick: .venv/installed   ## a minute: lint, and the unit tests, which start no process, kernel or browser
	exec $(BIN)/python -m study quick --jobs $(JOBS)

test: .venv/installed    ## ten minutes with trained models: all tests, and every notebook re-executed with nbval
	exec $(BIN)/python -m study test --jobs $(JOBS) $(NOTEBOOKS)

test-code: .venv/installed
	exec $(BIN)/python -m study test-code --jobs $(JOBS)

test-notebooks: .venv/installed
	exec $(BIN)/python -m study test-notebooks --jobs $(JOBS) $(NOTEBOOKS)

report: .venv/installed  ## write report/ from the stored notebooks; nothing is executed
	exec $(BIN)/python -m study report $(NOTEBOOKS)

lab: .venv/installed     ## explore in JupyterLab, on copies in play/ that are yours
	exec $(BIN)/python -m study lab

bench: .venv/installed   ## hours: arithmetic, speed beside what one would pick instead, how cost grows
	$(BIN)/pip install --quiet --constraint requirements.txt --requirement benchmarks/requirements.txt
	env -u OMP_NUM_THREADS $(BIN)/python benchmarks/bench.py --output $(BENCH)

published: .venv/installed ## two hours: a VAE as Burda et al. 2016 trained it, beside their number; into benchmarks/
	$(BIN)/python benchmarks/published.py

mutate: .venv/installed  ## 30 minutes: change the maths in each place, and see a unit test fail
	$(BIN)/pip install --quiet --constraint requirements.txt --constraint constraints.txt mutmut==3.8.1
	rm -rf mutants
	$(BIN)/python tests/mutation.py

refresh: .venv/installed ## execute in place, from nothing: the stored outputs and figures/
	exec $(BIN)/python -m study refresh --jobs $(JOBS) $(NOTEBOOKS)

sweep: .venv/installed   ## SEEDS=0-4: every notebook under each seed, 20 minutes for a new one; into figures/seeds.json
	exec $(BIN)/python -m study sweep --jobs $(JOBS) $(NOTEBOOKS)

lint: .venv/installed    ## tidy code and notebooks
	$(BIN)/ruff check --fix . && $(BIN)/ruff format . && $(BIN)/lint-imports

hooks: .venv/installed   ## for contributors: tidy at each commit, and readable diffs of notebooks
	$(BIN)/pre-commit install
	git config diff.jupyternotebook.command '"$(CURDIR)/$(BIN)/git-nbdiffdriver" diff'
	git config merge.jupyternotebook.driver '"$(CURDIR)/$(BIN)/git-nbmergedriver" merge %O %A %B %L %P'

clean:                   ## remove trained models and reports
	rm -rf .cache report mutants

.venv/installed: requirements.txt constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	@echo 'Installing into .venv: a few minutes, once'
	@if command -v uv > /dev/null; then \
		uv venv --quiet --allow-existing --seed --python $(PYTHON) .venv && \
		uv pip install --quiet --python .venv --requirement requirements.txt --constraint constraints.txt; \
	else \
		$(PYTHON) -m venv .venv && \
		$(BIN)/pip install --quiet --requirement requirements.txt --constraint constraints.txt; \
	fi
	touch $@
