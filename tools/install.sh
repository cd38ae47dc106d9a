#!/usr/bin/env bash
# Install the locked dependencies and this project into the environment of the given Python.
# uv installs the same hashed lock several times faster than pip; where it cannot reach the package index, pip does it alone.
set -euo pipefail
python=$1
lock=requirements.txt

seconds=$SECONDS
echo "Installing the locked dependencies (several GB, once)..."
only_uv=$(mktemp)
trap 'rm -f "$only_uv"' EXIT
awk '/^[A-Za-z0-9]/ {keep = /^uv==/} keep' "$lock" >"$only_uv"
"$python" -m pip install --quiet --require-hashes --no-deps -r "$only_uv"

# uv does not read pip's settings: hand over the index that pip was told to use, if any.
index=${PIP_INDEX_URL:-$("$python" -m pip config get global.index-url 2>/dev/null || true)}
if [ -n "$index" ]; then export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$index}; fi
export UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-120}
uv=("$python" -m uv pip install --quiet --python "$python")
if ! "${uv[@]}" --require-hashes -r "$lock"; then
  echo "uv could not install the lock; using pip, which takes some minutes." >&2
  "$python" -m pip install --quiet --require-hashes -r "$lock"
fi
"$python" -m pip install --quiet --no-deps --no-build-isolation -e .
echo "Installed in $((SECONDS - seconds)) s."
