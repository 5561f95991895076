# `make demo` runs the main job, `make test` everything that must pass, `make check` the fast inner loop.
# A fresh machine needs Python 3.10+, Go and a C compiler; the rest is installed below ./.venv and ./.tools.

PYTHON ?= python3
VENV := .venv
TESTENV := .venv-test
TOOLS := $(CURDIR)/.tools
GOLANGCI := $(TOOLS)/golangci-lint-2.15.0
BUF := $(TOOLS)/venv/bin/buf
DIST := build/wheels
OLDEST := build/transformers-oldest
PIP := -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
GENERATED := find plugins/proto strategies/all -name '*.pb.go' -o -path '*strategies/all/zz_*'
# Where goroutines share memory; the kernels' own threads are checked by their invariance tests.
RACE := ./core/... ./plugins/... ./pybind/...

# package:target; each is fuzzed for FUZZTIME beyond its committed corpus.
FUZZ := core/checkpoint:FuzzHeader core/checkpoint:FuzzUnpickle core/checkpoint:FuzzDistributed core/tensor/cbridge:FuzzLayout core/tensor/cbridge:FuzzSchema \
	plugins/host:FuzzManifest plugins/host:FuzzLock plugins/host:FuzzHandshake plugins/lane:FuzzParse plugins/wire:FuzzDecode \
	plugins/wire:FuzzBlockMask
FUZZTIME ?= 20s
EXAMPLES := dilated-window shrunk-positions

.PHONY: demo test check gen gen-check format-check lint vet go-test race fuzz examples wheel testenv types pytest compat docs notebooks bench neon amx clean

demo: $(VENV)/demo.stamp
	$(VENV)/bin/trivium demo

$(VENV)/demo.stamp: $(shell git ls-files -- '*.go' '*.c' '*.h' '*.py' '*.cu' go.mod pyproject.toml constraints.txt 2>/dev/null)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python $(PIP) '.[demo]'
	touch $@

test: gen-check format-check lint vet go-test race fuzz examples wheel testenv types pytest compat docs notebooks

# Seconds after the first run: what most changes can break.
check: format-check vet
	go test ./core/... ./strategies/... ./hardware/... ./plugins/wire/... ./plugins/shm/... ./tests/arch/...

$(BUF):
	$(PYTHON) -m venv $(TOOLS)/venv
	$(TOOLS)/venv/bin/python -m pip --disable-pip-version-check install --quiet buf-bin==1.75.0

gen: $(BUF)
	BUF=$(BUF) plugins/proto/generate.sh
	go generate ./strategies/all

gen-check:
	@before=$$($(GENERATED) | sort | xargs sha256sum); $(MAKE) --no-print-directory gen; \
	after=$$($(GENERATED) | sort | xargs sha256sum); \
	[ "$$before" = "$$after" ] || { echo 'generated code was stale: commit what `make gen` wrote'; exit 1; }

format-check:
	@unformatted=$$(git ls-files '*.go' | xargs gofmt -l); \
	[ -z "$$unformatted" ] || { echo "gofmt -w these: $$unformatted"; exit 1; }

$(GOLANGCI):
	GOBIN=$(TOOLS) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
	mv $(TOOLS)/golangci-lint $@

lint: $(GOLANGCI)
	$(GOLANGCI) run ./...

vet:
	go vet ./...

go-test:
	go test -timeout 30m ./...

race:
	go test -timeout 30m -race -short $(RACE)

fuzz:
	FUZZTIME=$(FUZZTIME) tests/fuzz.sh $(FUZZ)

# The arm64 kernels on any machine: apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user
neon:
	CC=aarch64-linux-gnu-gcc RUN='qemu-aarch64 -L /usr/aarch64-linux-gnu' SANITIZE= hardware/cpu/testdata/sanitize.sh 20260 60
	GOARCH=arm64 CGO_ENABLED=1 CC=aarch64-linux-gnu-gcc go test -count 1 -exec 'qemu-aarch64 -L /usr/aarch64-linux-gnu' \
		-run 'Levels|Dots|Huge' ./hardware/cpu

# The kernels of AMX on a machine with AVX512-BF16 and without AMX, their tiles in memory.
amx:
	CGO_CFLAGS='-O2 -DTRIVIUM_EMULATED_TILES' go test -count 1 -timeout 60m ./hardware/cpu ./strategies/attention/...

# Plugins in modules of their own, by the same suite that their authors run. The one in Python is pytest's.
examples:
	@for example in $(EXAMPLES); do (cd examples/$$example && go vet ./... && go test ./...) || exit 1; done

wheel:
	rm -rf $(DIST)
	$(PYTHON) -m venv build/venv-wheel
	build/venv-wheel/bin/python -m pip --disable-pip-version-check wheel --quiet --no-deps --wheel-dir $(DIST) .

# A clean environment that has the wheel and never saw the sources.
testenv: wheel
	rm -rf $(TESTENV)
	$(PYTHON) -m venv $(TESTENV)
	$(TESTENV)/bin/python $(PIP) "$$(ls $(DIST)/*.whl)[demo,dev]"

types: testenv
	$(TESTENV)/bin/python -m mypy

pytest:
	cd tests && ../$(TESTENV)/bin/python -m pytest -q python
	$(TESTENV)/bin/python -m auditwheel show $(DIST)/*.whl

# The oldest supported transformers over the same environment, in which pytest ran with the newest.
compat: testenv
	$(TESTENV)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --upgrade --target $(OLDEST) -r tests/compat/oldest.txt
	cd tests && PYTHONPATH=../$(OLDEST) ../$(TESTENV)/bin/python -c 'import transformers; assert transformers.__version__ == "4.53.0"'
	cd tests && PYTHONPATH=../$(OLDEST) ../$(TESTENV)/bin/python -m pytest -q python/test_hf_models.py python/test_hf_patch.py python/test_hf_cache.py python/test_hf_string.py

# The site, strictly, from the installed package; then every snippet on its pages.
docs:
	$(TESTENV)/bin/python -m mkdocs build --strict --quiet
	cd tests && ../$(TESTENV)/bin/python -m pytest -q docs

notebooks:
	cd tests && ../$(TESTENV)/bin/python -m pytest -q notebooks

bench:
	$(VENV)/bin/python -m pytest -q tests/bench

clean:
	rm -rf build build_gopy $(VENV) $(TESTENV) $(TOOLS)
