#!/bin/sh
# Builds the kernels with AddressSanitizer and UBSan and runs sanitize.c over
# them. Arguments: seed, number of cases. Fails on the first finding.
set -eu
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
case $(uname -m) in
x86_64) isa=amd64 ;;
aarch64) isa=arm64 ;;
*) isa=none ;;
esac
sources="$here/../support.c $here/../kernels_serial.c"
for f in "$here"/../kernels_*_"$isa".c; do
    [ -e "$f" ] && sources="$sources $f"
done
# shellcheck disable=SC2086 # a list of files
${CC:-gcc} -std=gnu11 -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all \
    -I"$here/../../table" "$here/sanitize.c" $sources -lm -o "$build/sanitize"
"$build/sanitize" "${1:-1}" "${2:-60}"
