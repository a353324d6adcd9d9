# The Python that makes .venv, 3.10 or newer: make env PYTHON=python3.11
PYTHON ?= python3
RUN := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help env demo test test-all bench bench-full lint format

help:  ## show this list
	@grep -E '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | expand -t 12

env:  ## make or repair .venv (a complete one is recognized at once)
	@$(PYTHON) tools/make_env.py

demo: env  ## train and show a tiny network on generated images
	$(RUN) -W ignore::FutureWarning tools/demo.py

# One thread for each of the two workers: more would only get into each other's way.
test: lint  ## lint, types and all tests but the slow ones
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 -m "not slow"

test-all: lint  ## lint, types and all tests
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2

# One thread: CPU time then is the work done. Tables go to benchmarks/results.
BENCH := OMP_NUM_THREADS=1 $(RUN) -W ignore
RESULTS := --output benchmarks/results

bench: env  ## measure every claim on this CPU (about 20 minutes), tables in benchmarks/results
	$(BENCH) benchmarks/bench_graph.py --rounds 4 $(RESULTS)
	$(BENCH) benchmarks/bench_model.py --rounds 3 $(RESULTS)
	$(BENCH) benchmarks/bench_loss.py $(RESULTS)
	$(BENCH) benchmarks/bench_evaluation.py $(RESULTS)
	$(BENCH) benchmarks/bench_dataloader.py $(RESULTS)
	$(BENCH) benchmarks/bench_tta.py $(RESULTS)

bench-full: env  ## measure the whole grid of graph and networks (hours); goes on where it stopped
	$(BENCH) benchmarks/bench_graph.py --full --rounds 4 $(RESULTS)
	$(BENCH) benchmarks/bench_model.py --full --rounds 4 $(RESULTS)

lint: env  ## Ruff (rules and format) and mypy
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: env  ## let Ruff rewrite what it can
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .
