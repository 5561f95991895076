#!/bin/sh
# How long it takes from nothing to a passing conformance run of a new plugin,
# and how many lines the author has. Needs trivium and Go on PATH; an empty Go
# build cache is used, and the module cache that there is.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export GOCACHE="$work/cache"
began=$(date +%s)
for arguments in "attention" "attention --select-only" "position"; do
  name="try-$(echo "$arguments" | tr -dc a-z)"
  ${TRIVIUM:-trivium} plugin new "$name" --kind $arguments >/dev/null
  ${TRIVIUM:-trivium} plugin test "$name"
  lines=$(grep -cvE '^\s*(//.*)?$' "$name/strategy.go")
  echo "$arguments: passed after $(($(date +%s) - began)) s, $lines lines"
done
