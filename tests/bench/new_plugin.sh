#!/bin/sh
# How long it takes from nothing to a passing conformance run of a new plugin,
# and how many lines the author has. Needs trivium and Go on PATH; an empty Go
# build cache is used, and with "cold" an empty module cache too.
set -eu
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
cd "$work"
export GOCACHE="$work/cache"
[ "${1:-}" != cold ] || export GOMODCACHE="$work/modules"
began=$(date +%s)
for arguments in "attention" "attention --select-only" "position" "merge"; do
  name="try-$(echo "$arguments" | tr -dc a-z)"
  ${TRIVIUM:-trivium} plugin new "$name" --kind $arguments >/dev/null
  ${TRIVIUM:-trivium} plugin test "$name"
  lines=$(grep -cvE '^\s*(//.*)?$' "$name/strategy.go")
  echo "$arguments: passed after $(($(date +%s) - began)) s, $lines lines"
done
