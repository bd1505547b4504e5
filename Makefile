# `make demo` on a fresh machine with Python 3.11 or newer sets everything up and runs the main job.
PYTHON ?= python3
BIN := .venv/bin
DONE := .venv/.installed

.PHONY: venv demo test test-all check bench

venv: $(DONE)

$(DONE): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt "torch==2.13.0"
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[demo,explain,images,keras,onnx,text,track,dev]"
	touch $(DONE)

demo: venv
	$(BIN)/limbeck demo

test: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile

test-all: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile -m "slow or not slow"

check: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -m "not slow and not runs" tests/architecture tests/docs

bench: venv
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/targets.py
	$(BIN)/python benchmarks/store.py
	$(BIN)/python benchmarks/losses.py
	$(BIN)/python benchmarks/methods.py digits
