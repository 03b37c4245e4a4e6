#!/usr/bin/env bash
# What needs no test to be seen: lint, format, types. Changes nothing; `just fix` mends what can be mended by itself.
. "$(dirname "$0")/setup.sh"
ruff check .
ruff format --check .
mypy
