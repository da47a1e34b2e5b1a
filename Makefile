# weaksam: `make help` lists what there is; `make -n TARGET` is the plan.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON  ?= python3
VENV    ?= .venv
BIN     := $(VENV)/bin
WEAKSAM := $(BIN)/weaksam
READY   := $(VENV)/.installed

# Build of torch: cpu is a tenth of what a GPU build takes; cu126 and the like; empty is the platform's own choice.
TORCH   ?=
INDEX    = $(if $(TORCH),--index-url https://download.pytorch.org/whl/$(TORCH))

DATASET ?= shapes
RUN     ?= runs/$(DATASET)
SEED    ?= 0
SET     ?=
FLAGS   ?=
# A recipe of its own for the data sets that have one.
RECIPE  ?= $(or $(filter shapes voc07 voc12 coco14 coco17,$(DATASET)),offline)
# Steps of the chain as the stages declare them, `stage/role:needed,needed`.
STEPS   := $(or $(shell $(PYTHON) -m stages.core.registry),$(error PYTHON must be Python 3.11 or later))
STAGES  := $(patsubst %/train,%,$(filter %/train,$(foreach s,$(STEPS),$(firstword $(subst :, ,$(s))))))
WHAT     = --run $(RUN) --recipe $(RECIPE) --seed $(SEED) $(foreach s,$(SET),--set $(s))

.PHONY: help venv demo architecture test lint types contracts docs docs-serve unit fuzz chain wheel clean ablation ablation-proposals photos $(STAGES) evaluate report FORCE

help: ## this list
	@grep -hE '^[a-z][a-z -]*:.*##' $(firstword $(MAKEFILE_LIST)) | awk -F':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'
	@echo "  stages       $(STAGES)"
	@echo "               each is a file target on manifests, e.g. make pgt DATASET=shapes; brings up all before it"
	@echo "  variables    DATASET=shapes RECIPE=<by data set> RUN=runs/<data set> SEED=0 SET='wsod.epochs=8 ...' FLAGS='--device cuda'"

venv: $(READY) ## make .venv and install everything (TORCH=cpu: without CUDA)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(INDEX) torch torchvision -c constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $@

demo: $(READY) ## all seven stages on drawn images, then runs/demo/report.html
	$(WEAKSAM) demo

architecture: $(READY) ## the picture of docs/architecture.md, from runs/demo
	$(BIN)/python -m benchmarks.architecture_picture --run runs/demo

test: lint types contracts docs unit chain ## everything CI checks

lint: $(READY) ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## mypy --strict
	$(BIN)/mypy

contracts: $(READY) ## import contracts
	$(BIN)/lint-imports

docs: $(READY) ## the documentation as a site in build/site, links checked
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

docs-serve: $(READY) ## the site while you write, on http://127.0.0.1:8000
	$(BIN)/python -m mkdocs serve

unit: $(READY) ## all tests but the chain
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not chain" -n 2

EXAMPLES ?= 20000
fuzz: $(READY) ## readers of files on random ones, EXAMPLES of each; failures stay in .hypothesis
	FUZZ_EXAMPLES=$(EXAMPLES) $(BIN)/pytest -n 0 tests/faults/test_fuzz.py

chain: $(READY) ## the seven stages end to end on a handful of images
	$(BIN)/pytest -m chain

wheel: $(READY) ## build the sdist, and from it the wheel, into dist/
	$(BIN)/python -m build --outdir dist

# --- from proposals to a retrained detector, step by step -----------------------------------------------
# Thresholds are swept on the validation split, which therefore gets proposals and detections, too.
SEEDS      ?= 0 1 2
ABLATION   ?= runs/ablation-$(DATASET)
VAL_SPLIT  ?= $(if $(filter shapes,$(DATASET)),shapes_val)
LIMIT      ?=
ABLATE     ?=

ablation: $(READY) ## WSDDN to RoI drop and the supervised bound, over SEEDS (LIMIT=images, ABLATE='--detr ...')
	$(MAKE) --no-print-directory wsod
	$(if $(VAL_SPLIT),$(MAKE) --no-print-directory wsod TEST_SPLIT=$(VAL_SPLIT))
	$(BIN)/python -m benchmarks.ablation --dataset $(DATASET) --run $(RUN) --recipe $(RECIPE) --out $(ABLATION) \
	  --seeds $(SEEDS) $(foreach s,$(SET),--set $(s)) $(if $(TRAIN_SPLIT),--train $(TRAIN_SPLIT)) \
	  $(if $(TEST_SPLIT),--test $(TEST_SPLIT)) $(if $(VAL_SPLIT),--val $(VAL_SPLIT)) $(if $(LIMIT),--limit $(LIMIT)) $(ABLATE)

# --- what each source of prompts adds, beside Selective Search ------------------------------------------
# opencv-contrib-python and opencv-python exclude one another, hence an environment of its own.
CONTRIB    ?= .venv-contrib
TEST        = $(or $(TEST_SPLIT),$(lastword $(shell $(WEAKSAM) settings --dataset $(DATASET) $(WHAT))))
EDGE_MODEL ?=

$(CONTRIB)/.installed:
	$(PYTHON) -m venv $(CONTRIB)
	$(CONTRIB)/bin/pip install --quiet --disable-pip-version-check opencv-contrib-python-headless
	@touch $@

ablation-proposals: $(READY) $(CONTRIB)/.installed ## recall by source of prompts over SEEDS (LIMIT=images, EDGE_MODEL=file)
	for seed in $(SEEDS); do \
	  $(MAKE) --no-print-directory prompt DATASET=$(DATASET) RECIPE=$(RECIPE) SEED=$$seed RUN=$(ABLATION)/s$$seed; \
	done
	$(BIN)/python -m benchmarks.proposals --split $(TEST) $(if $(LIMIT),--limit $(LIMIT)) --list-images $(ABLATION)/images.json
	$(CONTRIB)/bin/python benchmarks/classic_proposals.py --images $(ABLATION)/images.json \
	  --out $(ABLATION)/classic.json $(if $(EDGE_MODEL),--edge-model $(EDGE_MODEL))
	$(BIN)/python -m benchmarks.proposals --split $(TEST) $(if $(LIMIT),--limit $(LIMIT)) \
	  --run $(foreach s,$(SEEDS),$(ABLATION)/s$(s)) --classic $(ABLATION)/classic.json --plot $(ABLATION)/average_recall.png

# --- real photographs: where a chain loses, over seeds, with its supervised bound ------------------------
PHOTOS      ?= runs/photos
TRAIN_LIMIT ?=
TEST_LIMIT  ?=
CLASSES     ?= bus car cat train
PHOTO_FLAGS ?=

photos: $(READY) ## VOC07 photos over SEEDS, and their bound (TRAIN_LIMIT= TEST_LIMIT= CLASSES= PHOTO_FLAGS='--set ...')
	$(BIN)/python -m benchmarks.photo_runs --out $(PHOTOS) --seeds $(SEEDS) --classes $(CLASSES) \
	  $(if $(TRAIN_LIMIT),--train-limit $(TRAIN_LIMIT)) $(if $(TEST_LIMIT),--test-limit $(TEST_LIMIT)) $(PHOTO_FLAGS)

clean: ## remove caches and build products (never runs/ or data/)
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# --- the chain: one target per stage and split, each a manifest -------------------------------------
# The splits of a data set and the settings of each stage are asked of weaksam itself, which needs the
# environment; hence the second make. Settings files change only when a setting does.
ifndef CHAIN

$(STAGES) evaluate report: $(READY)
	@$(MAKE) --no-print-directory CHAIN=1 $@

else

PLAN := $(shell test -x $(WEAKSAM) && $(WEAKSAM) settings --dataset $(DATASET) $(WHAT) || echo FAILED)
ifeq ($(PLAN),FAILED)
$(error the settings above do not work)
endif
TRAIN_SPLIT ?= $(word 1,$(PLAN))
TEST_SPLIT  ?= $(word 2,$(PLAN))
SPLITS       = --train-split $(TRAIN_SPLIT) $(if $(TEST_SPLIT),--test-split $(TEST_SPLIT))

# Lists and annotations that a user edits; a stage whose split is the same after all is done at once.
DATA := $(or $(WEAKSAM_DATA),data)/$(DATASET)
TAGS := $(wildcard $(DATA)/*.csv $(DATA)/dataset.yaml $(DATA)/ImageSets/Main/*.txt \
  $(DATA)/annotations/*.json $(DATA)/Annotations/*.xml)

# A manifest is written whole and last, so make never has a half-made one to delete.
.PRECIOUS: %/manifest.json

# The manifests that steps such as cam/train end with; other words stay.
manifests = $(patsubst %/train,$(RUN)/%/$(TRAIN_SPLIT)/manifest.json,$(patsubst %/test,$(RUN)/%/$(TEST_SPLIT)/manifest.json,$(1)))

ifeq ($(TEST_SPLIT),)
STEPS := $(foreach s,$(STEPS),$(if $(findstring /test:,$(s)),,$(s)))
endif
MANIFESTS := $(call manifests,$(foreach s,$(STEPS),$(firstword $(subst :, ,$(s)))))

# Each step waits for the steps whose files it reads, for its settings and for the lists of the data set.
comma := ,
$(foreach s,$(STEPS),$(eval $(call manifests,$(subst $(comma), ,$(subst :, : ,$(s))))))
$(foreach s,$(STAGES),$(eval $(filter $(RUN)/$(s)/%,$(MANIFESTS)): $(RUN)/settings/$(s).yaml))
$(foreach s,$(STAGES),$(eval $(s): $(filter $(RUN)/$(s)/%,$(MANIFESTS)) ; @:))

$(MANIFESTS): $(RUN)/%/manifest.json: $(TAGS)
	$(WEAKSAM) $(subst /, --split ,$*) $(WHAT) --resume --overwrite $(FLAGS)

evaluate: $(MANIFESTS)
	$(WEAKSAM) evaluate --dataset $(DATASET) --run $(RUN) $(SPLITS)

report: evaluate
	$(WEAKSAM) report --dataset $(DATASET) --run $(RUN) $(SPLITS)

endif
