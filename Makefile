# Targets for people who work on Engram; `make` alone prints them. PYTHON chooses the interpreter (a virtual environment's).
PYTHON ?= python3

.DEFAULT_GOAL := help
.PHONY: help install test test-quick nightly lint bless docs tables tour examples bench scaling

help:            ## print these targets
	@grep -E '^[a-z-]+: *.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  \1	/' | expand -t 16

install:         ## install the checkout, editable, with what the tests need
	$(PYTHON) -m pip install -e '.[test]'

test:            ## run all tests
	$(PYTHON) -m pytest -n 2

test-quick:      ## run the tests that take less than a second each
	$(PYTHON) -m pytest -m "not slow" -x

nightly:         ## the tests on generated programs with 20 times as many, new ones each time
	ENGRAM_NIGHTLY=1 $(PYTHON) -m pytest tests/test_differential.py tests/test_differential_ops.py tests/test_fuzz.py tests/test_parity.py

lint:            ## check the style
	$(PYTHON) -m ruff check .

bless:           ## accept the current output of the golden tests (look at the diff before you commit it)
	ENGRAM_BLESS=1 $(PYTHON) -m pytest tests/ -k "golden or diagnostic"

docs:            ## write docs/reference from the tables of ops and operations, the library and the grammar
	$(PYTHON) -m engram.docs

tables:          ## compute the parser tables of frontend/grammar.lark again
	$(PYTHON) -c "from engram.frontend import lalr; lalr.write_tables()"

tour:            ## run the commands of docs/tour.md again and write down what they print now
	$(PYTHON) docs/regenerate.py

examples:        ## run every example on the cpu and on OpenCL
	for b in cpu opencl; do for f in examples/*.nn; do $(PYTHON) -m engram run $$f --backend $$b --out out/$$b || exit 1; done; done

bench:           ## time the headline workloads beside PyTorch and JAX (where they are installed) and write benchmarks/RESULTS.md
	$(PYTHON) -m engram bench --vs torch,jax --out benchmarks/RESULTS.md

scaling:         ## measure how cost grows with sizes, sequence length, batch and layers, and write benchmarks/SCALING.md
	$(PYTHON) -m engram bench --scaling --vs torch --out benchmarks/SCALING.md
