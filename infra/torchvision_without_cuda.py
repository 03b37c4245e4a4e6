"""Lets `import torchvision` work beside a CPU build of torch: run it once in an environment, after the installation.

The registry's torchvision links CUDA. Beside a CPU torch its `_C.so` cannot be loaded, and `import torchvision`, which timm and peft do
too, stops at "operator torchvision::nms does not exist". Nothing here uses those operators; to declare them is enough.

Run as a script, this file tries `import torchvision`. Only where that fails it copies itself into the environment's `site-packages`, with a
`.pth` file that imports it at the start of every interpreter of the environment: torchrun's and Ray's workers, notebooks, your own scripts.
There it waits for `import torchvision`, and where the compiled operators can be loaded after all, it declares nothing.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

_SYMPTOM = "operator torchvision::nms does not exist"
_declared: Any = None  # torch's Library: what it declares lives as long as this


class _Finder(MetaPathFinder):
    """Finds torchvision as Python would, and lets its operators be declared before its first line runs."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name == "torchvision" else None
        if spec is not None and spec.loader is not None and spec.origin is not None:
            execute, folder = spec.loader.exec_module, Path(spec.origin).parent

            def declare_and_execute(module: ModuleType) -> None:
                _declare_missing_operators(folder)
                execute(module)

            spec.loader.exec_module = declare_and_execute  # type: ignore[method-assign]  (of this one loader)
        return spec


def _declare_missing_operators(torchvision: Path) -> None:
    import torch  # only here: an interpreter that never imports torchvision must not wait for torch

    global _declared
    for compiled in sorted(torchvision.glob("_C*.so")):
        with contextlib.suppress(OSError):
            torch.ops.load_library(str(compiled))
    if not hasattr(torch.ops.torchvision, "nms"):
        _declared = torch.library.Library("torchvision", "FRAGMENT")
        _declared.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def _try_import() -> str:
    """What `import torchvision` in a new interpreter says; nothing if it works."""
    result = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True)
    return result.stderr.strip() if result.returncode else ""


def _install() -> None:
    name = Path(__file__).stem
    hook = Path(sysconfig.get_path("purelib"), f"{name}.py")
    if hook.exists() or _SYMPTOM in _try_import():  # one of an earlier checkout is made new
        shutil.copyfile(__file__, hook)
        hook.with_suffix(".pth").write_text(f"import {name}\n")
        print(f"torchvision: its compiled operators need CUDA, this torch has none; {hook} declares them")
    if error := _try_import():
        sys.exit(f"torchvision cannot be imported:\n{error}")


if __name__ == "__main__":
    _install()
else:
    sys.meta_path.insert(0, _Finder())
