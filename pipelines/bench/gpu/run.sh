#!/usr/bin/env bash
# The first command on a machine with a GPU and without network, in the project's root (docs/gpu.md):
#
#   bash build/offline/run.sh OUT [more of python -m pipelines.bench.gpu's arguments]
#
# The machine brings Python, torch and transformers; what else is needed lies beside this file.
set -eu
out=${1:?folder for the results}
shift
here=$(cd "$(dirname "$0")" && pwd)
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
tar -xJf "$here/site.tar.xz" -C "$site"
export PYTHONPATH="$site:$PWD"
"${PYTHON:-python3}" -m pipelines.bench.gpu --out "$out" "$@"
