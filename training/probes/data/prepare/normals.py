"""Converts the pickled normals test set of NYU to plain arrays: `python -m training.probes.data.prepare.normals PICKLE FOLDER`.

Reading a pickle runs what is in it. So this reads it with stand-ins for the few things that a pickle of numpy arrays calls, and refuses all
else before it is called; not even numpy's own restoring functions run, since they trust the bytes that they are given.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import sys
from typing import Any, BinaryIO

import numpy as np

from storage.location import StorageError
from training.probes.data.nyuv2_normals import ARRAYS, INDEX

_KINDS = re.compile(r"b1|[iu][1248]|f[248]|U\d{1,4}")  # numbers, and text of a fixed length
KEYS = (*ARRAYS, "scene_types", "train_indices", "test_indices")


class _Type:
    """Stands in for `numpy.dtype`: plain numbers and text only, and of its state the byte order only."""

    def __init__(self, name: str, *_: Any) -> None:
        if not _KINDS.fullmatch(name):
            raise pickle.UnpicklingError(f"an array of {name!r}, not of plain numbers")
        self.plain = np.dtype(name)

    def __setstate__(self, state: tuple) -> None:
        if state[1] not in ("<", ">", "|", "=") or state[2] is not None or state[3] is not None:
            raise pickle.UnpicklingError("an array of records")
        self.plain = self.plain.newbyteorder(state[1])


class _Array:
    """Stands in for `numpy.ndarray`; its value is there once its state is set."""

    value: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, fortran, data = state
        self.value = _plain_array(data, kind, shape, "F" if fortran else "C")


class _NdarrayName:
    """What `numpy.ndarray` is as an argument: a name, nothing to call."""


def _plain_array(data: Any, kind: Any, shape: Any, order: str) -> np.ndarray:
    if not isinstance(kind, _Type) or not isinstance(data, (bytes, bytearray)) or not all(type(n) is int and n >= 0 for n in shape):
        raise pickle.UnpicklingError("an array whose state is not that of plain numbers")
    if math.prod(shape) * kind.plain.itemsize != len(data):
        raise pickle.UnpicklingError(f"an array of shape {shape} with {len(data)} bytes")
    return np.frombuffer(data, kind.plain).reshape(shape, order=order)  # type: ignore[call-overload]


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _from_buffer(data: Any, kind: Any, shape: Any, order: str) -> _Array:
    found = _Array()
    found.value = _plain_array(data, kind, shape, order)
    return found


def _scalar(kind: Any, data: Any) -> Any:
    return _plain_array(data, kind, (), "C").item()


def _latin1(text: Any, encoding: Any) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text in {encoding!r}")
    return str.encode(text, "latin1")


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): _NdarrayName,
    ("_codecs", "encode"): _latin1,  # bytes in pickles of protocol 2
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it calls {module}.{name}")
        return _STAND_INS[module, name]


def load_plain(stream: BinaryIO) -> Any:
    """What a pickle of arrays, numbers, text, lists and dicts holds. Raises `pickle.UnpicklingError` for all else, which is not run."""
    try:
        return _values(_PlainUnpickler(stream).load())
    except (ValueError, TypeError, AttributeError, LookupError, EOFError, ArithmeticError, RecursionError, MemoryError) as error:
        raise pickle.UnpicklingError(f"{type(error).__name__}: {error}") from error


def _values(found: Any, depth: int = 0) -> Any:
    """With arrays in the place of stand-ins. Nested deeper than a dict of lists, a small file could stand for endless data."""
    if isinstance(found, _Array):
        if found.value is None:
            raise pickle.UnpicklingError("an array without its state")
        return found.value
    if isinstance(found, (dict, list, tuple)):
        if depth == 2:
            raise pickle.UnpicklingError("lists in lists")
        if isinstance(found, dict):
            return {_values(name): _values(part, depth + 1) for name, part in found.items()}
        return [_values(part, depth + 1) for part in found]
    if found is None or isinstance(found, (bool, int, float, str, bytes)):
        return found
    raise pickle.UnpicklingError(f"a {type(found).__name__.lstrip('_')}")


def convert(source: str, folder: str) -> None:
    """Writes `images.npy`, `depths.npy`, `snorms.npy` and `test.json` into a local folder.

    Raises:
        StorageError: the pickle calls something, or does not hold what the normals test set holds.
    """
    try:
        with open(source, "rb") as stream:
            found = load_plain(stream)
    except OSError as error:
        raise StorageError(f"{source}: {error.strerror}; give the pickle of the normals test set") from error
    except pickle.UnpicklingError as error:
        raise StorageError(f"{source}: refused, {error}; the test set is plain arrays and text, so do not trust this file") from error
    missing = [name for name in KEYS if not isinstance(found, dict) or name not in found]
    if missing:
        raise StorageError(f"{source}: has no {', '.join(missing)}; give the pickle of the normals test set")
    os.makedirs(folder, exist_ok=True)
    for name, kind in ARRAYS.items():
        np.save(os.path.join(folder, f"{name}.npy"), np.asarray(found[name]).astype(kind), allow_pickle=False)
    index = {name: np.asarray(found[name]).tolist() for name in ("scene_types", "train_indices", "test_indices")}
    with open(os.path.join(folder, INDEX), "w") as stream:
        json.dump(index, stream)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m training.probes.data.prepare.normals PICKLE FOLDER")
    try:
        convert(*sys.argv[1:])
    except StorageError as error:
        sys.exit(str(error))
