# The Python that makes the environment, 3.10 to 3.13: make env PYTHON=python3.11
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --no-input

.DEFAULT_GOAL := help
.PHONY: help env demo test test-all chaos bench bench-full lint format docs

help:  ## show this list
	@grep -E '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | expand -t 12

# Only one call at a time may work on the environment.
LOCK := $(if $(shell command -v flock),flock $(VENV).lock)

# A copied clone carries an environment that points at the original.
CHECK := 'import cdgcnet; from importlib.metadata import version; version("torch"); \
	version("detectron2"); assert cdgcnet.__file__.startswith("$(CURDIR)/")'

env:  ## make or repair .venv (a complete one is recognized at once)
	@$(RUN) -I -c $(CHECK) 2>/dev/null || rm -f $(VENV)/complete
	@$(LOCK) $(MAKE) --no-print-directory $(VENV)/complete

# The stamp is written last. An environment that was cut off half-way is made anew: pip would take
# packages for installed whose files are not all there.
$(VENV)/complete: pyproject.toml setup.py requirements-tested.txt
	@if [ -L $(VENV) ]; then echo "make env: $(VENV) is a link; remove it first" >&2; exit 1; fi
	$(PYTHON) -m venv $$([ -e $(VENV).incomplete ] && echo --clear) $(VENV)
	@touch $(VENV).incomplete
	@# The exact set was tested with Python 3.11; others get the ranges of pyproject.toml.
	if $(RUN) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then \
		$(PIP) --requirement requirements-tested.txt && \
		$(PIP) --no-deps --no-build-isolation --editable .; \
	else \
		$(PIP) --editable '.[data,test,docs]' 'setuptools>=77' wheel; \
	fi
	$(RUN) tools/install_detectron2.py
	@rm $(VENV).incomplete
	@touch $@

demo: env  ## train and show a tiny network on generated images
	$(RUN) tools/demo.py

# One thread for each of the two workers: more would only get into each other's way.
test: lint  ## lint, types and all tests but the slow ones
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 -m "not slow"

test-all: lint  ## lint, types and all tests, with coverage
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --cov --cov-report=term:skip-covered

docs: export NO_MKDOCS_2_WARNING := 1
docs: env  ## build the documentation in site/, failing on any warning
	$(RUN) -W ignore -m mkdocs build --strict

# One thread: CPU time then is the work done. Tables go to benchmarks/results.
BENCH := OMP_NUM_THREADS=1 $(RUN) -W ignore
RESULTS := --output benchmarks/results

chaos: env  ## kill, fill up and attack everything, and count what goes wrong (half an hour, resumable)
	$(BENCH) tests/chaos/run.py --output benchmarks/results/chaos.json
	CDGC_KILLS=20 $(BENCH) -m pytest -m slow tests/cdgcnet/engine/test_distributed.py -k killed

bench: env  ## measure the main claims on this CPU (15 minutes), tables in benchmarks/results
	$(BENCH) benchmarks/bench_graph.py --rounds 2 $(RESULTS)
	$(BENCH) benchmarks/bench_model.py --rounds 2 $(RESULTS)
	$(BENCH) benchmarks/bench_loss.py --rounds 3 $(RESULTS)
	$(BENCH) benchmarks/bench_evaluation.py --rounds 3 $(RESULTS)
	$(BENCH) benchmarks/bench_dataloader.py --rounds 3 $(RESULTS)
	$(BENCH) benchmarks/bench_tta.py --rounds 3 $(RESULTS)

bench-full: env  ## measure what make bench leaves out (hours; the grids go on where they stopped)
	$(BENCH) benchmarks/bench_evaluation_extras.py $(RESULTS)
	$(BENCH) benchmarks/bench_predict.py --rounds 3 $(RESULTS)
	$(BENCH) benchmarks/bench_refine.py $(RESULTS)
	$(BENCH) benchmarks/bench_export.py $(RESULTS)
	$(BENCH) benchmarks/bench_graph.py --full --rounds 4 $(RESULTS)
	$(BENCH) benchmarks/bench_model.py --full --rounds 4 $(RESULTS)

lint: env  ## Ruff (rules and format), mypy, and the direction of imports
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports

format: env  ## let Ruff rewrite what it can
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .
