.PHONY: help demo backbones docs clean test quick faults scale-test image-test check lint bench bench-images soak lock audit
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# No tool of this project reports anything to its makers.
export DVC_NO_ANALYTICS := true
# Keep what Python compiles: otherwise each of the many processes of the tests compiles the library anew.
export PYTHONDONTWRITEBYTECODE :=

##@ For users

help:  ## list the targets
	@awk -F ':.*## ' '/^##@ /{printf "\n%s:\n", substr($$0, 5)} /^[a-z-]+:.*## /{printf "  %-12s %s\n", $$1, $$2}' Makefile

demo: .venv/ready  ## set up, make a workspace in demo/, run two weeks of real images through it
	datapool demo demo

backbones: .venv/ready  ## compare models on digits; on your images: make backbones ARGS="FOLDER --trained"
	python -m benchmarks.backbones $(or $(ARGS),--digits)

docs: .venv/docs  ## build the pages of docs/ as a site in site/, open site/index.html
	mkdocs build --strict

clean:  ## remove what set-up, demo and docs made
	rm -rf .venv demo site

##@ For developers

test: .venv/ready  ## run all tests, as CI does
	python -m pytest -n auto --dist worksteal

quick: .venv/ready  ## run the quick tests
	python -m pytest -n auto --dist worksteal -m "not slow and not full"

faults: .venv/ready  ## kill and starve runs at every file operation, some 45 minutes on two idle cores
	rm -f .pytest_cache/faults && mkdir -p .pytest_cache
	FAULTS_TALLY=$(CURDIR)/.pytest_cache/faults python -m pytest -n auto --dist worksteal -m "full or not full" tests/faults
	python tests/faults/summary.py .pytest_cache/faults

scale-test: .venv/ray  ## test the stages on a Ray cluster of two nodes, and batches from shards and an S3 server, some minutes
	python -m pytest -m "full or not full" tests/scale tests/pipeline/test_dvc_inputs.py

image-test:  ## build and run the CPU image without a Docker engine (Linux, root); faster: ARGS=--short
	python3 tests/container/check.py $(ARGS)

check: lint test  ## run lint and test

lint: .venv/dev  ## check style, types and workflows
	ruff check .
	ruff format --check .
	mypy
	! command -v biome >/dev/null || biome lint --error-on-warnings  # page.js and page.css; its wheel is for Linux on x86-64
	check-jsonschema --builtin-schema vendor.compose-spec compose.yaml
	check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	zizmor --offline --quiet --no-progress .github/workflows

bench: .venv/bench  ## compare the selection with other implementations, some 15 minutes; ARGS=--full: more than an hour
	python -m benchmarks.selection $(ARGS)

bench-images: .venv/ready  ## compare reading and embedding images with plain loops, some 10 minutes; ARGS="--week --old CHECKOUT"
	python -m benchmarks.images $(ARGS)

soak: .venv/ready  ## add 51 batches to one pool and write benchmarks/soak.md, some minutes
	python -m benchmarks.soak > benchmarks/soak.md

lock:  ## pin the newest versions in constraints.txt
	env -u UV_FIND_LINKS .venv/bin/uv pip compile --quiet --upgrade --universal --no-header --no-annotate --python-version 3.11 \
	  --extra cpu --extra gpu --extra bench --extra dev --extra docs --extra ray --extra s3 --extra gs --extra azure --extra text --extra video pyproject.toml --output-file constraints.txt

audit: .venv/ready  ## ask PyPI for known vulnerabilities of the versions in constraints.txt
	uvx pip-audit --strict --no-deps --disable-pip --progress-spinner off --requirement constraints.txt

.venv/ready: setup.sh pyproject.toml constraints.txt
	./setup.sh

.venv/dev: setup.sh pyproject.toml constraints.txt
	EXTRAS=dev ./setup.sh
	touch .venv/dev

.venv/ray: setup.sh pyproject.toml constraints.txt
	EXTRAS=test,ray ./setup.sh
	touch .venv/ray

.venv/bench: setup.sh pyproject.toml constraints.txt
	EXTRAS=test,bench ./setup.sh
	touch .venv/bench

.venv/docs: setup.sh pyproject.toml constraints.txt
	EXTRAS=test,docs ./setup.sh
	touch .venv/docs
