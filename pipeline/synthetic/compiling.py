"""How the kernels of this package are compiled: once, to disk, for one thread, and again when any of their sources changed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit

# Numba's cache looks at the file of the cached function alone and would go on using what it inlined from another file before that one was
# edited. The digest of all kernel sources in the name of every kernel keeps old machine code apart.
_SOURCES = ("scene/geometry.py", "render/camera.py", "scene/light.py", "render/render.py")
_DIGEST = hashlib.sha256(b"".join((Path(__file__).parent / name).read_bytes() for name in _SOURCES)).hexdigest()[:12]


def _named(function: Callable[..., Any]) -> Callable[..., Any]:
    function.__qualname__ = f"{function.__qualname__}_{_DIGEST}"
    return function


def kernel(function: Callable[..., Any]) -> Any:
    """Compiles a loop over pixels, rays or vertices."""
    return njit(cache=True, error_model="numpy")(_named(function))


def scalar(function: Callable[..., Any]) -> Any:
    """Compiles a function of one ray or one point, called from kernels.

    Such functions own no memory, so the counting of references to the arrays in their arguments is switched off: it took half of the time.
    """
    return njit(cache=True, error_model="numpy", _nrt=False)(_named(function))  # type: ignore[call-overload]
