#!/usr/bin/env bash
# Make .venv, or bring it up to date: exactly the packages of requirements-dev.lock, each checked by its hash, and
# this package itself as it lies here (editable). Takes the oldest Python that is supported, 3.11, where it is installed
# with its venv module; else a later one.
set -euo pipefail
cd "$(dirname "$0")/.."

suits() {
  "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

if ! suits .venv/bin/python; then
  for python in python3.11 python3.12 python3.13 python3; do
    if suits "$python"; then
      echo "making .venv with $("$python" --version)"
      "$python" -m venv --clear .venv
      break
    fi
  done
fi
if ! suits .venv/bin/python; then
  echo "No Python 3.11 or later with its venv module was found (looked for python3.11, python3.12, python3.13," \
    "python3). Install one; on Debian: apt-get install python3 python3-venv" >&2
  exit 1
fi

rm -f .venv/.ready
export PIP_DISABLE_PIP_VERSION_CHECK=1
.venv/bin/python -m pip --version >/dev/null 2>&1 || .venv/bin/python -m ensurepip >/dev/null
.venv/bin/python -m pip install --quiet --require-hashes --requirement requirements-build.lock
.venv/bin/uv pip sync --quiet --compile-bytecode --python .venv/bin/python --require-hashes requirements-dev.lock
.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
# Compiled once: where Python is told to write no bytecode, each process would do it for itself.
.venv/bin/python -m compileall -q src
touch .venv/.ready
