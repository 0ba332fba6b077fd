# Two commands do everything on a machine with Python 3.11+, git and make: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-all check bench label setup clean

demo: $(READY)  ## a simulated T1 brain becomes a T2: NIfTI, DICOM, a picture and a run report in demo_output/
	@$(BIN)/medgen demo demo_output

test: $(READY)  ## the default suite: offline, on the CPU, under 10 minutes on two cores
	$(BIN)/python -m pytest

test-all: $(READY)  ## everything, the slow tests too
	$(BIN)/python -m pytest -m ""

check: $(READY)  ## style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)  ## medgen beside `python -m monai.bundle run`: tables and a chart in speed_results/; about 40 minutes on two cores
	$(BIN)/python benchmarks/speed.py

setup: $(READY)  ## only the environment

label: $(VENV)/.label  ## MONAI Label into the same environment, for `medgen serve`

# Without their dependencies: those hold numpy below 2 and bring torch for CUDA.
$(VENV)/.label: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,label]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps monailabel dcmqi
	@touch $@
	@echo "MONAI Label is there: $(BIN)/medgen serve --studies STUDIES"

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) demo_output speed_results build dist
