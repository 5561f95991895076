#!/bin/sh
# fuzz.sh PACKAGE:TARGET... fuzzes each target for FUZZTIME (20s, or a count: 10000000x) beyond its committed corpus, with
# FUZZPARALLEL workers. What it finds is written to the package's testdata/fuzz, and new inputs to build/fuzz.
#
# `go test -fuzz` instruments everything that is linked in, gRPC and all, and clears all those counters before each
# execution. Here only what a target is about is instrumented: the same executions take a fifth to a tenth of the time.
set -eu
cd "$(dirname "$0")/.."
module=$(go list -m)
log=$(mktemp)
# Targets that read files have them in memory where that is to be had: twice the executions.
memory=${TMPDIR:-/tmp}
if [ -w /dev/shm ]; then memory=/dev/shm; fi
trap 'rm -f "$log"' EXIT

instrumented() {
  case $1 in
    core/checkpoint) echo "$module/core/checkpoint $module/core encoding/json" ;;
    core/tensor/cbridge) echo "$module/core/tensor/cbridge $module/core/tensor encoding/json github.com/apache/arrow/go/v17/arrow/cdata" ;;
    plugins/host) echo "$module/plugins/host $module/core encoding/json" ;;
    plugins/lane) echo "$module/plugins/lane" ;;
    plugins/wire) echo "$module/plugins/wire $module/core $module/core/tensor" ;;
    *) echo "fuzz.sh: say what of $1 is to be instrumented" >&2; exit 1 ;;
  esac
}

for target in "$@"; do
  package=${target%:*} name=${target#*:}
  binary=$PWD/build/fuzz/$(basename "$package").test
  flags=$(for p in $(instrumented "$package"); do printf -- '-gcflags=%s=-d=libfuzzer ' "$p"; done)
  [ -n "$flags" ] || exit 1
  go test -c $flags -o "$binary" "./$package"
  if (cd "$package" && TMPDIR=$memory "$binary" -test.run '^$' -test.fuzz "^$name\$" -test.fuzztime "${FUZZTIME:-20s}" -test.fuzzminimizetime 0x \
    -test.parallel "${FUZZPARALLEL:-2}" -test.fuzzcachedir "$OLDPWD/build/fuzz/$name") >"$log" 2>&1; then
    echo "$name: $(grep -o 'execs: .*' "$log" | tail -1)"
    continue
  fi
  # Go 1.26 fails so when the time is over at a bad moment (go.dev/issue/75804); whatever an input did would say more.
  if [ "$(grep -v '^fuzz: ' "$log" | sed 's/ ([0-9.]*s)//')" = "--- FAIL: $name
    context deadline exceeded
FAIL" ]; then
    echo "$name: $(grep -o 'execs: .*' "$log" | tail -1); ended late"
    continue
  fi
  cat "$log"
  exit 1
done
