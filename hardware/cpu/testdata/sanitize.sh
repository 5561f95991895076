#!/bin/sh
# Builds the kernels with AddressSanitizer and UBSan and runs sanitize.c over
# them. Arguments: seed, number of cases. Fails on the first finding.
# CC=aarch64-linux-gnu-gcc RUN="qemu-aarch64 -L /usr/aarch64-linux-gnu" SANITIZE=
# checks the arm64 kernels on another machine, DEFINE=-DTRIVIUM_EMULATED_TILES those of AMX on one with
# AVX512-BF16 alone.
set -eu
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
cc=${CC:-gcc}
case $($cc -dumpmachine) in
x86_64-*) isa=amd64 ;;
aarch64-*) isa=arm64 ;;
*) isa=none ;;
esac
sources="$here/../support.c $here/../kernels_serial.c"
for f in "$here"/../kernels_*_"$isa".c; do
    [ -e "$f" ] && sources="$sources $f"
done
# shellcheck disable=SC2086 # lists of words
$cc -std=gnu11 -O1 -g -fno-omit-frame-pointer ${DEFINE-} ${SANITIZE--fsanitize=address,undefined -fno-sanitize-recover=all} \
    -I"$here/../../table" "$here/sanitize.c" $sources -lm -o "$build/sanitize"
# Frames that outlive their function are kept apart by gcc 13 at addresses that vectors of 64 bytes cannot
# be stored at (its bug 110027): it would find a crash that is not ours.
export ASAN_OPTIONS="detect_stack_use_after_return=0:${ASAN_OPTIONS-}"
# shellcheck disable=SC2086
${RUN:-} "$build/sanitize" "${1:-1}" "${2:-60}"
