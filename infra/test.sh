#!/usr/bin/env bash
# Makes the environment and runs the tests that need no GPU; what was skipped, and why, stands at the end of the output.
# Arguments go to pytest: `bash infra/test.sh -m gpu` on a CUDA machine.
. "$(dirname "$0")/setup.sh"
exec python -m pytest "$@"
