# The whole path from the competition's files to a submission; `make help` lists the targets.
# Variables are passed on the command line: make train BACKBONE=roberta FOLD=all
# CHECK=setup lets `make test` begin without the lint, which is meant for the pinned versions of its tools.
# ALSO names packages that are installed beside kit's own.

PYTHON   ?= python3
VENV     := .venv
CONSTRAINTS ?= constraints.txt
KIT      := $(VENV)/bin/kit
BACKBONE ?= deberta
GPU      ?= t4
RAW      ?= data/raw
DATA     ?= data/processed
RUN      ?= $(firstword $(shell ls -td runs/*/ 2>/dev/null))
RUNS     ?= $(wildcard runs/*)
FILE     ?= submissions/submission.csv
TRUTH    ?= $(wildcard $(RAW)/truth.csv)
ARGS     ?=
CHECK    ?= check
ALSO     ?=
IMAGES   ?= 3.12 3.13
WORKERS  ?= 2
SOAK_MINUTES ?= 60  # of `make soak`

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-kaggle soak check download preprocess train predict ensemble validate score report kernel \
        kernel-status submit bench bench-gpu lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/installed ## make .venv and install kit in it, pinned by constraints.txt

$(VENV)/installed: pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kit needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -c $(CONSTRAINTS) -e '.[test]' $(ALSO)
	@touch $@

demo: setup ## run the whole pipeline on the embedded sample
	$(KIT) demo $(ARGS)

test: $(CHECK) ## lint, then run every test, offline
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

# An old torchao beside peft is part of Kaggle's images: it has broken adapters.
test-kaggle: ## every test on the packages of Kaggle's images [IMAGES=3.13]
	@tested=0; failed=0; for image in $(IMAGES); do \
		echo "# python$$image"; \
		if ! python$$image -c '' 2>/dev/null; then echo "skipped: there is no python$$image here"; continue; fi; \
		tested=1; $(MAKE) --no-print-directory test CHECK=setup ALSO=torchao PYTHON=python$$image \
			VENV=.venv-kaggle-$$image CONSTRAINTS=constraints-kaggle-$$image.txt || failed=1; \
	done; \
	[ $$tested = 1 ] || { echo "nothing was tested: install Python 3.12 or 3.13, for example with pyenv"; exit 1; }; \
	[ $$failed = 0 ] || { echo "a test has failed on one of Kaggle's images: see above"; exit 1; }

soak: setup ## kill, starve and feed rubbish to every command for SOAK_MINUTES
	OMP_NUM_THREADS=1 SOAK_MINUTES=$(strip $(SOAK_MINUTES)) $(VENV)/bin/python -m pytest tests/faults $(ARGS)

check: setup ## lint, check the formatting and the types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ty check kit

download: setup ## the competition's files from Kaggle into RAW
	$(KIT) download --out $(RAW) $(ARGS)

preprocess: setup ## clean, label and split the rows in RAW
	$(KIT) preprocess --raw $(RAW) --out $(DATA) $(ARGS)

train: setup ## fine-tune BACKBONE [FOLD=holdout|all|0…]
	$(KIT) train --backbone $(BACKBONE) $(if $(FOLD),--fold $(FOLD)) --data $(DATA) $(ARGS)

predict: setup ## probabilities of the test rows by RUN, by default the newest run
	$(KIT) predict $(RUN) --data $(DATA) $(ARGS)

ensemble: setup ## blend the test predictions of RUNS into FILE
	$(KIT) ensemble $(wildcard $(addsuffix /test.csv,$(RUNS))) -o $(FILE) --force $(ARGS)

validate: setup ## check FILE as Kaggle's graders would
	$(KIT) validate $(FILE) --sample $(RAW)/sample_submission.csv $(ARGS)

score: setup ## log loss of FILE against TRUTH
	$(KIT) score $(FILE) --truth $(or $(TRUTH),$(error there is no $(RAW)/truth.csv: name the labels with TRUTH=FILE)) $(ARGS)

report: setup ## compare RUNS on the same rows
	$(KIT) report $(RUNS) --data $(DATA) $(if $(TRUTH),--truth $(TRUTH)) $(ARGS)

kernel: setup ## train BACKBONE on Kaggle [GPU=t4 FOLD=all|holdout|0…]
	$(KIT) kernels push train --backbone $(BACKBONE) --gpu $(GPU) $(if $(FOLD),--fold $(FOLD)) $(ARGS)

kernel-status: setup ## state of the kernels in kernels/, or of KERNEL
	$(KIT) kernels status $(KERNEL) $(ARGS)

submit: setup ## submit KERNEL, by default kit-infer: make submit MSG="what it is"
	$(KIT) submit --kernel $(or $(KERNEL),kit-infer) -m '$(subst ','\'',$(or $(MSG),$(error say what it is: make submit MSG="two encoders, mean")))' --wait $(ARGS)

bench: setup ## the speed benchmarks, each against its target [ROWS=folder ENCODER=folder]
	@missed=0; for each in scoring preprocess padding blending attention; do \
		echo "# $$each"; $(VENV)/bin/python benchmarks/$$each.py || missed=1; done; \
	echo "# peers"; $(VENV)/bin/python benchmarks/peers.py \
		$(if $(ROWS),--raw $(ROWS)) $(if $(ENCODER),--backbone $(ENCODER)) $(ARGS) || missed=1; \
	[ $$missed = 0 ] || { echo "a target is missed, or a benchmark has failed: see above"; exit 1; }

bench-gpu: setup ## the peers and the attention on one GPU [ROWS=folder ENCODER=folder]
	@export CUDA_VISIBLE_DEVICES=$${CUDA_VISIBLE_DEVICES:-0}; \
	export CUDA_VISIBLE_DEVICES=$${CUDA_VISIBLE_DEVICES%%,*}; missed=0; \
	echo "# attention"; $(VENV)/bin/python benchmarks/attention.py --device cuda --tokens 512 || missed=1; \
	echo "# peers"; $(VENV)/bin/python benchmarks/peers.py \
		--device cuda --tokens 512 --batch 32 --rows 1600 --predict 3200 \
		$(if $(ROWS),--raw $(ROWS)) $(if $(ENCODER),--backbone $(ENCODER)) $(ARGS) || missed=1; \
	[ $$missed = 0 ] || { echo "a target is missed, or a benchmark has failed: see above"; exit 1; }

lock: setup ## requirements.lock: the pinned set with hashes, for this machine
	@mkdir -p build
	$(VENV)/bin/python -m pip install --quiet --dry-run --ignore-installed --report build/lock.json \
		-c constraints.txt '.[test]'
	$(VENV)/bin/python supply/lock.py build/lock.json requirements.lock

clean: ## remove what make and the demo made; data, runs and submissions stay
	rm -rf $(VENV) .venv-bench .venv-kaggle-* demo build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
