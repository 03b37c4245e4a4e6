#!/usr/bin/env bash
# Makes the environment and runs the tests that need no GPU. Arguments go to pytest: `bash infra/test.sh -m gpu` on a CUDA machine.
. "$(dirname "$0")/setup.sh"
exec python -m pytest "$@"
