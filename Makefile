# Every target sets itself up: a fresh clone needs only Python >= 3.11 and make.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# The CPU build of PyTorch, so that a machine without a GPU does not pull gigabytes of CUDA packages.
# With a GPU: make TORCH=torch TORCH_INDEX= ...
TORCH       ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo torch || echo torch==2.13.0)
TORCH_INDEX ?= $(if $(filter torch,$(TORCH)),,https://download.pytorch.org/whl/cpu)

.PHONY: demo operate-demo test test-pythons test-tasks test-faults test-attacks test-flower test-flower-next test-timm test-ops
.PHONY: check format protos docs bench results install clean

demo: $(STAMP)  ## one server and four clients on this machine, fedavg against fednc
	$(BIN)/fednc demo

operate-demo: $(STAMP)  ## search, a gate, serving, an alarm and a swap, each claim checked: about two minutes
	$(BIN)/pip install --quiet -e '.[demo,dev,ops,ops-test]'
	$(BIN)/python -m fednc.cli.operate_demo

test: $(STAMP)  ## the whole test suite, at most 9 minutes on two cores
	$(BIN)/pytest -q -n 2 --dist loadfile

test-pythons:  ## the whole test suite on every other Python (3.12 to 3.14) that is on this machine
	.ci/pythons

test-tasks: $(STAMP)  ## trainings of the workloads that take minutes, at most 20 minutes on two cores
	$(BIN)/pytest -q -n 2 --dist loadfile --timeout=900 tests/tasks_long

test-faults: $(STAMP)  ## kill, freeze, disconnect and deceive real processes, at most 10 minutes on two cores
	$(BIN)/pytest -q --timeout=300 tests/faults

test-attacks: $(STAMP)  ## admitted nodes that lie, at most 10 minutes on two cores
	$(BIN)/pytest -q -n 2 --timeout=300 tests/attacks

test-ops: $(STAMP)  ## the registry of models and what else needs the extra `ops`, at most 8 minutes on two cores
	$(BIN)/pip install --quiet -e '.[demo,dev,ops,ops-test,search,tensorboard,wandb]'
	$(BIN)/pytest -q --timeout=300 tests/ops

# Without ray the tests of the simulation engine are skipped, with the reason.
test-flower: $(STAMP)  ## our apps on stock Flower and stock apps on our link, at most 10 minutes on two cores
	$(BIN)/pip install --quiet -e '.[demo,dev,flower-sim]' || echo "ray cannot be installed here"
	$(BIN)/pytest -q -n 2 tests/flower

# The other Flower version that pyproject.toml allows, in a second virtual environment that falls back to our packages.
NEXT_FLOWER ?= $(shell $(BIN)/python -c "import flwr; print('1.41.0' if flwr.__version__ >= '1.42' else '1.42.0')")
NEXT        := .venv-flower

test-flower-next: $(STAMP)  ## the contract with Flower apps on the other version of Flower, at most 5 minutes
	$(PYTHON) -m venv $(NEXT)
	$(BIN)/python -c "import site; print('import site; site.addsitedir(%r)' % site.getsitepackages()[0])" \
	  > $$($(NEXT)/bin/python -c "import site; print(site.getsitepackages()[0])")/zz_shared.pth
	$(NEXT)/bin/pip install --quiet "flwr==$(NEXT_FLOWER)"
	$(NEXT)/bin/pip install --quiet --no-deps -e .
	$(NEXT)/bin/python -c "import flwr; assert flwr.__version__ == '$(NEXT_FLOWER)', flwr.__version__"
	$(NEXT)/bin/python -m pytest -q tests/flower/contract tests/server/foreign/test_foreign_server.py tests/client/foreign/test_foreign_process.py

# PyTorch and torchvision must match, so both are installed anew, beside our other packages: 5.5 GB where pip finds no
# CPU build of the pair. On machines where it finds none at all the target says so and succeeds.
TIMM       ?= .venv-timm
TIMM_TORCH ?= torch torchvision
TIMM_TESTS := tests/tasks/vision/test_timm_models.py

test-timm: $(STAMP)  ## models of timm, in a second virtual environment with torchvision, at most 5 minutes
	$(PYTHON) -m venv $(TIMM)
	$(BIN)/python -c "import site; print('import site; site.addsitedir(%r)' % site.getsitepackages()[0])" \
	  > $$($(TIMM)/bin/python -c "import site; print(site.getsitepackages()[0])")/zz_shared.pth
	if $(TIMM)/bin/pip install --quiet --ignore-installed $(TIMM_TORCH) && $(TIMM)/bin/pip install --quiet timm \
	  && $(TIMM)/bin/pip install --quiet --no-deps -e . && $(TIMM)/bin/python -c "import timm"; \
	then $(TIMM)/bin/python -m pytest -q $(TIMM_TESTS); \
	else echo "test-timm is skipped: no matching torch and torchvision can be installed on this machine"; fi

check: $(STAMP) .types  ## format, lint, strict types, shell scripts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy -p fednc
	$(BIN)/shellcheck $$(git ls-files '*.sh') .ci/run .ci/pythons

format: $(STAMP)  ## rewrite all files in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

protos: $(STAMP)  ## regenerate protos/*_pb2*.py
	$(BIN)/python -m grpc_tools.protoc -Ifednc/protos=protos --python_out=. --pyi_out=. --grpc_python_out=. \
	  fednc/protos/federation.proto fednc/protos/operator.proto fednc/protos/open_inference.proto
	mv fednc/protos/*_pb2* protos/ && rm -r fednc

docs: $(STAMP)  ## regenerate docs/config.md from the configuration model
	$(BIN)/python -m fednc.cli.config_docs docs/config.md

bench: $(STAMP)  ## measure link, aggregation, scale, trainer and serving on an otherwise idle machine, into results/bench
	mkdir -p results/bench
	$(BIN)/fednc bench link --params 1e5 --clients 2 --against raw,flower --json results/bench/link-small.json
	$(BIN)/fednc bench link --params 11e6 --clients 2 --rounds 3 --against raw,flower --json results/bench/link.json
	$(BIN)/fednc bench link --params 11e6,86e6 --clients 2 --rounds 3 --tls off,mtls --json results/bench/link-tls.json
	$(BIN)/fednc bench link --params 11e6 --clients 2,64 --rounds 2 --json results/bench/link-clients.json
	$(BIN)/fednc bench fold --json results/bench/fold.json
	$(BIN)/fednc bench scale --clients 1000 --json results/bench/scale.json
	$(BIN)/fednc bench scale --clients 1000 --tls mtls --json results/bench/scale-mtls.json
	$(BIN)/fednc bench trainer --json results/bench/trainer.json
	$(BIN)/fednc bench serve --json results/bench/serve.json

results: $(STAMP)  ## rewrite docs/results.md from results/
	$(BIN)/python -m fednc.bench.compare.results_page docs/results.md

compose-demo:  ## the whole federation in containers, checked from outside; cleans up after itself
	deploy/compose.sh

compose-chaos:  ## the same while a client and the server are killed in the middle of a round
	deploy/compose.sh deploy/compose.chaos.yml

compose-broken:  ## setups broken on purpose, on which the checks must fail
	tests/compose/broken.sh

wheelhouse:  ## collect all wheels of the images, for builds without a network
	deploy/wheelhouse.sh

base-image:  ## make a base image without pulling one
	deploy/base-image.sh

lock: $(STAMP)  ## pin the images' packages to the versions installed here
	PYTHON=$(BIN)/python deploy/lock.sh

install: $(STAMP)

# PyTorch first: a wheel on this disk, else from PyTorch's CPU index, else from the default index.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null \
	  || $(BIN)/pip install --quiet --no-index --no-deps "$(TORCH)" 2>/dev/null \
	  || { test -n "$(TORCH_INDEX)" && $(BIN)/pip install --quiet "$(TORCH)" --index-url "$(TORCH_INDEX)"; } \
	  || $(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet -e '.[demo,dev]'
	touch $@

# mypy and editors follow the package-dir mapping of pyproject.toml through these links.
.types: $(wildcard api/*.py)
	mkdir -p .types/fednc
	for d in bench cli client common ops protos server tasks; do ln -sfn ../../$$d .types/fednc/$$d; done
	for f in api/*.py; do ln -sfn ../../$$f .types/fednc/$${f#api/}; done
	touch .types

clean:
	rm -rf $(VENV) .venv-* $(NEXT) .types build *.egg-info .mypy_cache .ruff_cache .hypothesis
