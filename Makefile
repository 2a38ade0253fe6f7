# The commands of this repository. Each sets up .venv first if needed, which takes Python 3.11 or newer, git and make.
PYTHON ?= python3
BIN := .venv/bin
UV := $(BIN)/uv
COMPARE := $(BIN)/python train.py compare
SEEDS ?= 5
# some images set it: without bytecode each command would compile its packages anew
export PYTHONDONTWRITEBYTECODE :=
QUIET := --trainer.enable_progress_bar=false --trainer.enable_model_summary=false

.PHONY: demo results results-video results-sequence transfer notebooks test test-all test-cuda mutants check format bench lock

demo: .venv/installed  ## train and test a network with and without the block, draw a picture; 2 minutes of training
	$(COMPARE) configs/image/cued_digits.yaml --variant "with the block:" --variant "without: --model.blocks.at=none"

results: .venv/installed  ## README, cued digits: each pairwise function, SEEDS=5
	$(COMPARE) configs/image/cued_digits.yaml --seeds $(SEEDS) --processes 2 --variant "no block: --model.blocks.at=none" \
	  --variant "Gaussian: --model.blocks.pairwise=gaussian" \
	  --variant "embedded Gaussian: --model.blocks.pairwise=embedded_gaussian" \
	  --variant "dot product: --model.blocks.pairwise=dot_product" \
	  --variant "concatenation: --model.blocks.pairwise=concatenation" \
	  -- $(QUIET)

results-video: .venv/installed  ## README, cued clips: a small version of the paper's Table 2, SEEDS=5
	$(COMPARE) configs/video/cued_clips.yaml --seeds $(SEEDS) --processes 2 --variant "no block: --model.blocks.at=none" \
	  --variant "one block: --model.blocks.at=paper-1" --variant "five blocks, spacetime:" \
	  --variant "five blocks, space only: --model.blocks.window=[1,null,null]" \
	  --variant "five blocks, time only: --model.blocks.window=[null,1,1] --model.blocks.pool=null" \
	  --variant "Gaussian: --model.blocks.pairwise=gaussian" --variant "dot product: --model.blocks.pairwise=dot_product" \
	  --variant "concatenation: --model.blocks.pairwise=concatenation" -- $(QUIET)

# data sets that a package ships, with their epochs; on long series the stem has a stride
SERIES := "GunPoint:50" "ArrowHead:100" "ItalyPowerDemand:100" "BasicMotions:60" "JapaneseVowels:30" \
  "OSULeaf:25 --model.stem_stride=2" "ACSF1:80 --model.stem_stride=8"
results-sequence: .venv/installed  ## README, time series: with and without the block, SEEDS=5
	set --; for series in $(SERIES); do \
	  args="--data.name=$${series%%:*} --trainer.max_epochs=$${series#*:}"; \
	  set -- "$$@" --variant "$${series%%:*}, no block: $$args --model.blocks.at=none" --variant "$${series%%:*}, block: $$args"; \
	done; $(COMPARE) configs/sequence/ucr.yaml --seeds $(SEEDS) --processes 2 "$$@" -- $(QUIET)

transfer: .venv/installed  ## README, solar cells: ImageNet weights fine-tuned with and without blocks, 3 seeds
	$(COMPARE) configs/image/elpv.yaml --seeds 3 --metric test/balanced_accuracy \
	  --variant "no block: --model.blocks.at=none" --variant "two blocks:" -- $(QUIET)

notebooks: .venv/installed  ## execute the notebooks and save their outputs; 8 minutes
	$(BIN)/python notebooks/execute.py

test: .venv/installed  ## run the fast tests
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow"

test-all: .venv/installed  ## run all tests
	$(BIN)/python -m pytest -n auto --dist worksteal

test-cuda: .venv/installed  ## check the layer on a GPU against the oracles on the CPU
	$(BIN)/python -m pytest -m oracle --device cuda tests/nn

mutants: .venv/installed  ## make the mistakes of tests/mutants.toml one by one: does a test fail? half an hour
	$(BIN)/python tests/mutants.py

check: .venv/installed  ## run the linters and the type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed  ## format the code, and fix what the linter can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

ifeq ($(DEVICE),cuda)
bench:  ## DEVICE=cuda: measure the GPU in float32, bfloat16 and float16; installs nothing, PYTHON must have torch
	PYTHONPATH=src $(PYTHON) -m benchmarks --device cuda
else
bench: .venv/bench  ## measure the tables of benchmarks/README.md (long); `python -m benchmarks <table>` measures one
	$(BIN)/python -m benchmarks
endif

COMPILE := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --extra dev --extra sweep \
  --no-emit-index-url --no-header --no-annotate pyproject.toml

lock: .venv/installed  ## lock the newest versions that pyproject.toml admits, for all platforms
	$(COMPILE) --upgrade --output-file constraints.txt
	$(COMPILE) --upgrade --extra bench --constraint constraints.txt --output-file benchmarks/constraints.txt

.venv/installed: constraints.txt pyproject.toml
	$(PYTHON) -c "import sys; sys.version_info >= (3, 11) or sys.exit('Python 3.11 or newer is needed (make PYTHON=...), this is ' + sys.version)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$$(grep -o '^uv==[0-9.]*' constraints.txt)"
	$(UV) pip install --quiet --python $(BIN)/python --require-hashes --requirement constraints.txt
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

.venv/bench: .venv/installed benchmarks/constraints.txt
	$(UV) pip install --quiet --python $(BIN)/python --require-hashes --requirement benchmarks/constraints.txt
	touch $@
