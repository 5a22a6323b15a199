# make train   .venv, compilation, the main job on the embedded digits; pictures and scores in runs/
# make test    .venv, compilation, every test, on all cores
# make test-instruction-sets   CPU kernels, models and a training step as lesser processors run them
# make sanitize   the CPU extension under g++'s address and undefined-behaviour sanitizers
# make bench   all benchmarks; results in benchmarks/results
# make lint    ruff, mypy, clang-format
# make docs    the API reference, built from the docstrings, in build/docs
# make check-cuda   compile, link and load the CUDA extension against a CUDA PyTorch, without a GPU
#
# TORCH=2.13.0 is what .venv gets; TORCH=2.14.1 any other, TORCH= the newest supported.
# PYTHON=python3.12 chooses the interpreter.
PYTHON ?= python3
TORCH ?= 2.13.0
VENV ?= .venv
OUT ?= runs/digits
# A worker keeps neighbouring tests, and what they share; an idle one takes some of another's.
PARALLEL ?= -n logical --maxprocesses 8 --dist worksteal
CLANG_FORMAT_FILES := $(wildcard csrc/cpu/* csrc/cuda/* csrc/include/lddgan/* python/*)

BIN := $(VENV)/bin
TORCH_SPEC := $(if $(TORCH),torch==$(TORCH),torch>=2.11,<2.16)
SOURCES := setup.py CMakeLists.txt pyproject.toml $(wildcard csrc/*.cmake csrc/*/* csrc/include/lddgan/* python/*)

.PHONY: train test test-instruction-sets sanitize bench lint docs check-cuda install clean
install: $(VENV)/installed

$(VENV)/torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH_SPEC)"
	touch $@

$(VENV)/installed: $(VENV)/torch $(SOURCES)
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/test-tools: $(VENV)/installed
	LDDGAN_EMULATE_CUDA=ON $(BIN)/python -m pip install --quiet -e ".[test,triton,lint,plot,parquet,onnx,docs]"
	touch $@

train: $(VENV)/installed
	$(BIN)/python -m lddgan_kernels.train --out $(OUT)

test: $(VENV)/test-tools
	$(BIN)/python -m pytest $(PARALLEL)

test-instruction-sets: $(VENV)/test-tools
	$(BIN)/python -m tests.instruction_sets -q $(PARALLEL)

sanitize: $(VENV)/test-tools
	$(BIN)/python -m tests.sanitized -q $(PARALLEL)

bench: $(VENV)/test-tools
	$(BIN)/python -m benchmarks all

lint: $(VENV)/test-tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CLANG_FORMAT_FILES)

docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet -e ".[docs]"
	$(BIN)/python -m tools.api_reference build/docs

check-cuda:
	$(PYTHON) tools/check_cuda.py

clean:
	rm -rf build .venv *.egg-info lddgan_kernels/_C*.so
