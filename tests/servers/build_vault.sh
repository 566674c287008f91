#!/usr/bin/env bash
# Builds the HashiCorp Vault that the tests run against, from the Go module proxy, once for each version.
# Needs Go 1.25.3 or newer and, the first time, some minutes. Prints the path of the binary.
set -euo pipefail
source_folder=$(cd "$(dirname "$0")/vault_server" && pwd)

version=$(sed -n 's|^require github.com/hashicorp/vault v||p' "$source_folder/go.mod")
cache=${XDG_CACHE_HOME:-$HOME/.cache}/attested-kms
binary=$cache/vault-$version

if [ -x "$binary" ]; then
  echo "$binary"
  exit
fi
if ! command -v go >/dev/null; then
  echo "building Vault needs Go 1.25.3 or newer (https://go.dev/dl/)" >&2
  exit 1
fi

mkdir -p "$cache"
# Under another name until it is whole, so that nobody starts half a program.
unfinished=$(mktemp "$cache/.vault-$version.XXXXXX")
trap 'rm -f "$unfinished"' EXIT

echo "building Vault $version (minutes, and once): $binary" >&2
# Nobody's own Go settings: the same modules as everywhere, each held against go.sum.
cd "$source_folder"
GOENV=off GOWORK=off GOTOOLCHAIN=local GOFLAGS=-mod=readonly CGO_ENABLED=0 \
  nice go build -trimpath -buildvcs=false -tags minimal -ldflags "-s -w" -o "$unfinished" .
chmod 755 "$unfinished"
mv "$unfinished" "$binary"
echo "$binary"
