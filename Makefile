.PHONY: help demo test quick faults image-test check lint bench soak backbones lock audit clean
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# The tools of this project report nothing to anybody.
export DVC_NO_ANALYTICS := true

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

demo: .venv/ready  ## set up, make a workspace in demo/, run two weeks of real images through it
	datapool demo demo

test: .venv/ready  ## set up, run all tests
	python -m pytest -n auto --dist worksteal

quick: .venv/ready  ## run the tests that take no long
	python -m pytest -n auto --dist worksteal -m "not slow and not full"

faults: .venv/ready  ## kill it everywhere, feed it everything, and count: some 45 minutes of two quiet cores
	rm -f .pytest_cache/faults && mkdir -p .pytest_cache
	FAULTS_TALLY=$(CURDIR)/.pytest_cache/faults python -m pytest -n auto --dist worksteal -m "full or not full" tests/faults
	python tests/faults/summary.py .pytest_cache/faults

image-test:  ## build the image with CPU wheels and run it, without a Docker engine (Linux, root); ARGS=--short for less
	python3 tests/container/check.py $(ARGS)

check: lint test  ## lint and test

lint: .venv/dev  ## style, types, workflows
	ruff check .
	ruff format --check .
	mypy
	check-jsonschema --builtin-schema vendor.compose-spec compose.yaml
	check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	zizmor --offline --quiet --no-progress .github/workflows

bench: .venv/bench  ## compare the selection with others, some 15 minutes; more than an hour: make bench ARGS=--full
	python -m benchmarks.selection $(ARGS)

soak: .venv/ready  ## put 51 batches into one pool and write benchmarks/soak.md, some minutes
	python -m benchmarks.soak > benchmarks/soak.md

backbones: .venv/ready  ## compare backbones on digits; on your images: make backbones ARGS="FOLDER --trained"
	python -m benchmarks.backbones $(or $(ARGS),--digits)

lock:  ## choose the versions in constraints.txt anew, for CPU and GPU alike
	env -u UV_FIND_LINKS .venv/bin/uv pip compile --quiet --upgrade --universal --no-header --no-annotate --python-version 3.11 \
	  --extra cpu --extra gpu --extra bench --extra dev pyproject.toml --output-file constraints.txt

audit: .venv/ready  ## ask PyPI for known vulnerabilities of the versions in constraints.txt
	uvx pip-audit --strict --no-deps --disable-pip --progress-spinner off --requirement constraints.txt

clean:  ## remove what set-up and demo made
	rm -rf .venv demo

.venv/ready: setup.sh pyproject.toml constraints.txt
	./setup.sh

.venv/dev: setup.sh pyproject.toml constraints.txt
	EXTRAS=dev ./setup.sh
	touch .venv/dev

.venv/bench: setup.sh pyproject.toml constraints.txt
	EXTRAS=test,bench ./setup.sh
	touch .venv/bench
