# Run by hand, or sourced by the other scripts: makes the environment `.venv` of this checkout, or takes the one that is there, and enters it.
# Takes the torch that pip finds: a CPU build where a wheel folder of pip's holds one, else the registry's CUDA build.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ ! -x .venv/bin/python ]; then
    echo "setup: making .venv with $(python3 --version)"
    python3 -m venv .venv
fi
. .venv/bin/activate

wanted=$(cat pyproject.toml infra/constraints.txt infra/torchvision_without_cuda.py | cksum)
if [ "$(cat .venv/installed-for 2>/dev/null)" != "$wanted" ]; then
    echo "setup: installing into .venv (a few minutes the first time)"
    pip install --quiet --disable-pip-version-check --editable '.[dev]' --constraint infra/constraints.txt
    python infra/torchvision_without_cuda.py
    echo "$wanted" > .venv/installed-for
else
    echo "setup: .venv is up to date"
fi
python -c 'import platform, torch; print(f"setup: python {platform.python_version()}, torch {torch.__version__}, CUDA: {torch.cuda.is_available()}")'
