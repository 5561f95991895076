#!/bin/sh
# Lints the contract, holds it against the released one, and writes the Go code of it. The plugins run locally, at
# the versions of go.mod and buf.gen.yaml. BUF names a buf binary; without it,
# buf is built from source, which takes minutes.
set -eu
cd "$(dirname "$0")"
version=1.75.0
buf=${BUF:-"go run github.com/bufbuild/buf/cmd/buf@v$version"}
found=$($buf --version)
if [ "$found" != "$version" ]; then
  echo "generate.sh: buf $found: want $version (set BUF, or unset it)" >&2
  exit 1
fi
$buf lint
# What a released plugin may rely on. After a release: buf build -o contract.binpb
$buf breaking --against contract.binpb
$buf generate
