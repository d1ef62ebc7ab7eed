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
.PHONY: help build onnxruntime demo test test-transformers bench bench-kernels bench-models bench-precompute bench-train bench-memory bench-size bench-table lint clean
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

# Students of a few steps and their own answers, for transformers, sentence-transformers and ONNX Runtime to compare with; made anew each time. NAME
# stands for its teacher's directory and the flags of its training. One of every family for every task, and others that differ from their
# teacher in width, depth and activation.
STUDENTS := distilbert bert roberta albert narrow activation \
    classifier multilabel regression unnamed tagger-distilbert tagger-bert tagger-roberta tagger-albert \
    sentence-distilbert sentence-bert sentence-roberta sentence-albert llama gpt2 llama-narrow
SMALL := data/golden/teachers
from = $(1) --init-from $(1)
small = $(SMALL)/$(1) --layers 2
from_small = $(call small,$(1)) --init-from $(SMALL)/$(1)
distilbert := $(call from,data/teacher) --family distilbert
bert := $(call from,data/teacher) --family bert
roberta := $(call from,data/teacher) --family roberta
albert := $(call from,data/teacher) --family albert --embedding-size 256 --layers 3
narrow := $(call from,data/teacher) --family bert --hidden-size 96 --heads 3 --feed-forward 200 --layers 2 --loss ce=5,mlm=2 --init-widths importance
activation := data/teacher --family albert --activation gelu_new --embedding-size 48
classifier := $(call from_small,bert-classifier) --family bert
multilabel := $(call from_small,roberta-multilabel) --family roberta
regression := $(call from_small,distilbert-regression) --family distilbert
unnamed := $(call from_small,albert-classifier) --family albert
tagger-distilbert := $(call from_small,distilbert-tagger) --family distilbert
tagger-bert := $(call from_small,bert-tagger) --family bert
tagger-roberta := $(call from_small,roberta-tagger) --family roberta
tagger-albert := $(call from_small,albert-tagger) --family albert
sentence-distilbert := $(call from_small,distilbert-sentence) --family distilbert
sentence-bert := $(call from_small,bert-sentence) --family bert --hidden-size 8
sentence-roberta := $(call small,mpnet-sentence) --family roberta
sentence-albert := $(call small,bert-sentence) --family albert --embedding-size 8
llama := $(call from_small,llama)
gpt2 := $(call from_small,gpt2)
llama-narrow := $(call small,llama) --hidden-size 8 --heads 2 --feed-forward 20
teacher_of = $(firstword $($(1)))
cache_of = $(TRANSFORMERS)/students-caches/$(notdir $(1))

define make_cache
$(BIN)/precompute --quiet --teacher $(1) --corpus data/corpus/heldout.txt --limit 120 --max-length 64 --out $(call cache_of,$(1))

endef
define make_student
$(BIN)/train --quiet --cache $(call cache_of,$(call teacher_of,$(1))) --out $@/$(1) --steps 8 --eval-fraction 0.1 $(wordlist 2,99,$($(1)))
$(BIN)/train export --student $@/$(1) --onnx
$(BIN)/examples/student_answers $@/$(1) $(call cache_of,$(call teacher_of,$(1))) 16 $@/$(1)/answers.safetensors

endef

.PHONY: $(TRANSFORMERS)/students
$(TRANSFORMERS)/students:
	$(CARGO) build --release --locked --workspace --example student_answers
	rm -rf $@ $@-caches
	$(foreach teacher,$(sort $(foreach student,$(STUDENTS),$(call teacher_of,$(student)))),$(call make_cache,$(teacher)))
	$(foreach student,$(STUDENTS),$(call make_student,$(student)))

# Ours and the Python peers in turn; each stage stands alone, and `make bench-train ONLY=small` takes one case of it. With VECTORS=avx2 all programs
# find a processor without AVX-512 (tests/python/peers/without_avx512.c), and write into a folder of their own. tests/BENCHMARKS.md has what they gave.
VECTORS ?=
BENCH := $(TARGET)/bench$(VECTORS:%=-%)
PEERS := $(TARGET)/venv-peers
ONLY ?=
ROUNDS ?= 5
ROUND_SECONDS ?= 8
HIDING := $(if $(VECTORS),$(BENCH)/without_avx512.so)
# The C library has chosen before a preloaded library is there.
C_LIBRARY := glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX512BW,-AVX512CD,-AVX512DQ
hidden = $(if $(HIDING),LD_PRELOAD=$(abspath $(HIDING)) GLIBC_TUNABLES=$(C_LIBRARY))
asked = --rounds $(ROUNDS) --seconds $(ROUND_SECONDS) $(if $(ONLY),--only $(ONLY))
measure = $(hidden) $(PEERS)/bin/python tests/python/peers/bench.py $(1) --bin $(BIN) --work $(BENCH) $(asked)

bench: bench-kernels bench-precompute bench-train bench-memory bench-size ## measure everything against ONNX Runtime, PyTorch and pyarrow (an hour; fetches 3 GB)

bench-kernels: build $(HIDING) ## measure the top-k beside a plain sum, and a training step beside its bare matrix products
	$(hidden) $(CARGO) bench --locked --workspace --bench topk
	$(hidden) $(CARGO) bench --locked --workspace --bench kernels -- demo 10

bench-models: $(PEERS)/ready ## make the benchmark's teachers and corpora in target/bench/models
	$(PEERS)/bin/python tests/python/peers/make_models.py $(BENCH)/models

bench-precompute: build onnxruntime bench-models $(HIDING) ## measure precompute beside the bare session and the Python peer
	$(CARGO) build --release --locked --workspace --example batch_plan
	$(call measure,precompute)

bench-train: build onnxruntime bench-models $(HIDING) ## measure a training step beside PyTorch's in each of its modes
	$(call measure,train)

bench-memory: build onnxruntime $(PEERS)/ready $(HIDING) ## measure peak memory at one and at ten times the corpus
	$(call measure,memory)

bench-size: build onnxruntime $(PEERS)/ready $(HIDING) ## sizes of the programs and seconds to the first batch
	$(call measure,size)

bench-table: $(PEERS)/ready ## print the tables of what was measured last
	$(call measure,table)

ifneq ($(HIDING),)
$(HIDING): tests/python/peers/without_avx512.c
	$(if $(filter avx2,$(VECTORS)),,$(error VECTORS=$(VECTORS): avx2, or nothing for all that the processor has))
	@mkdir -p $(@D)
	$(CC) -Wall -Wextra -O1 -shared -fPIC -o $@ $<
endif

$(PEERS)/ready: tests/python/peers/requirements.txt
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

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
