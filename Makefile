# Every command of the project. `make` alone lists them.
PYTHON ?= python3
CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
BIN := $(TARGET)/release
DEMO := $(TARGET)/demo
READERS := $(TARGET)/venv-readers
TRANSFORMERS := $(TARGET)/venv-transformers
SCRIPTS := data/scripts
SEED ?= 0
# The one file that `make onnxruntime` unpacks; its name differs between systems. Expanded when a recipe runs, after it is there.
RUNTIME = $(abspath $(firstword $(wildcard $(TARGET)/onnxruntime/libonnxruntime.*)))

.DEFAULT_GOAL := help
.PHONY: help build onnxruntime demo test test-transformers bench lint clean
.DELETE_ON_ERROR:

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build both programs: target/release/precompute and target/release/train
	$(CARGO) build --release --locked --workspace

# The library goes beside the programs too, where precompute finds it without being told.
onnxruntime: ## fetch ONNX Runtime's shared library (20 MB) into target/onnxruntime
	@$(PYTHON) $(SCRIPTS)/fetch_onnxruntime.py $(TARGET)/onnxruntime
	@mkdir -p $(BIN) && rm -f $(BIN)/libonnxruntime.* && ln -sf $(abspath $(TARGET))/onnxruntime/libonnxruntime.* $(BIN)/

demo: build onnxruntime ## ask the demo teacher about 6,000 reactions, distil its student and time both (minutes; SEED=0)
	$(BIN)/precompute --teacher data/teacher --corpus data/corpus/train.txt --out $(DEMO)/cache
	$(BIN)/precompute --teacher data/teacher --corpus data/corpus/heldout.txt --out $(DEMO)/heldout-cache
	$(BIN)/train --cache $(DEMO)/cache --eval-cache $(DEMO)/heldout-cache --out $(DEMO)/student-$(SEED) \
	    --init-from data/teacher/model.onnx --layers 6 --epochs 2 --dropout 0 --seed $(SEED)
	$(BIN)/train export --student $(DEMO)/student-$(SEED) --onnx
	$(BIN)/precompute time data/teacher $(DEMO)/student-$(SEED) --batch 1,16 --length 89 --out $(DEMO)/student-$(SEED)/speed.json
	$(BIN)/train report --student $(DEMO)/student-$(SEED)

test: build onnxruntime $(READERS)/ready ## run every test that needs no PyTorch (fetches 200 MB the first time)
	ORT_DYLIB_PATH=$(RUNTIME) $(CARGO) test --release --locked --workspace

test-transformers: announce build onnxruntime ## make the reference numbers anew and load students in transformers (fetches 3 GB the first time)
	@$(MAKE) --no-print-directory $(TRANSFORMERS)/ready
	$(TRANSFORMERS)/bin/python $(SCRIPTS)/make_golden.py --check
	$(TRANSFORMERS)/bin/python $(SCRIPTS)/make_onnx_fixtures.py --check
	$(TRANSFORMERS)/bin/python $(SCRIPTS)/make_teachers.py --check
	$(MAKE) --no-print-directory $(TRANSFORMERS)/students
	$(TRANSFORMERS)/bin/python tests/python/student_in_transformers.py $(TRANSFORMERS)/students/*
	$(TRANSFORMERS)/bin/python tests/python/tensorboard_reads.py $(TRANSFORMERS)/students/*

# Said before anything is built or fetched.
.PHONY: announce
announce:
	@test -e $(TRANSFORMERS)/ready || echo "This fetches about 3 GB of Python wheels (PyTorch with what it brings) into $(TRANSFORMERS)."

# Students of a few steps and their own answers, for transformers to compare with; made anew each time. One of every family that starts from
# the teacher, and others that differ from it in width, depth and activation.
STUDENTS := distilbert bert roberta albert narrow activation
FROM_TEACHER := --init-from data/teacher/model.onnx
distilbert := --family distilbert $(FROM_TEACHER)
bert := --family bert $(FROM_TEACHER)
roberta := --family roberta $(FROM_TEACHER)
albert := --family albert --embedding-size 256 --layers 3 $(FROM_TEACHER)
narrow := --family bert --hidden-size 96 --heads 3 --feed-forward 200 --layers 2 --loss ce=5,mlm=2 \
    --init-widths importance $(FROM_TEACHER)
activation := --family albert --activation gelu_new --embedding-size 48

.PHONY: $(TRANSFORMERS)/students
$(TRANSFORMERS)/students:
	rm -rf $@ $@-cache
	$(BIN)/precompute --quiet --teacher data/teacher --corpus data/corpus/heldout.txt --out $@-cache
	$(foreach student,$(STUDENTS),$(BIN)/train --quiet --cache $@-cache --out $@/$(student) --steps 8 $($(student)) && \
	    $(CARGO) run --quiet --release --locked --package train --example student_answers -- \
	        $@/$(student) $@-cache 16 $@/$(student)/answers.safetensors &&) true

bench: build ## measure the top-k, a training step, and the memory of training on the demo's two caches
	$(CARGO) bench --locked --package precompute --bench topk
	$(CARGO) bench --locked --package train --bench kernels -- demo 10
	$(CARGO) bench --locked --package train --bench memory

lint: ## formatting, clippy and documentation, warnings as errors
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --release --locked --workspace --no-deps

clean: ## remove everything that was built, fetched or made
	$(CARGO) clean

# An environment of its own for each list of requirements; `ready` comes last, so that an interrupted installation is done again.
$(TARGET)/venv-%/ready: $(SCRIPTS)/requirements-%.txt
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	touch $@
