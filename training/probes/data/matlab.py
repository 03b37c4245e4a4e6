"""Numeric arrays of MATLAB files of level 5, in plain Python; files of v7.3, which are HDF5, through h5py.

Source: "MAT-File Format" (MathWorks): a header of 128 bytes, then elements of a type, a size and data padded to 8 bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from storage.location import StorageError
from training.probes.data import files

_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}  # element types
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}  # of numeric arrays
_MATRIX, _COMPRESSED = 14, 15
_COMPLEX = 0x0800
_MOST_BYTES = 1 << 28  # that a compressed element may hold; GeoNet's frames have 17 MB
_MOST_LETTERS = 1000  # of a text in a cell; the names of NYU's scenes have 30


def read_level5(url: str, names: tuple[str, ...], remedy: str) -> dict[str, np.ndarray]:
    """The arrays of these names. Raises StorageError where one is missing or the file is of another kind."""
    data = files.read(url, remedy)
    if data[:10] != b"MATLAB 5.0" or data[126:128] not in (b"IM", b"MI"):
        raise StorageError(f"{url}: not a MATLAB file of level 5; save it with save(..., '-v7') or fetch it again")
    order = "<" if data[126:128] == b"IM" else ">"
    try:
        found = dict(array for kind, part in _elements(data[128:], order) if (array := _array(kind, part, order)) is not None)
    except (ValueError, KeyError, IndexError, zlib.error) as error:
        raise StorageError(f"{url}: damaged ({error}); fetch the file again") from error
    for name in names:
        if name not in found:
            raise StorageError(f"{url}: has no numeric array {name!r}, only {', '.join(sorted(found)) or 'none'}; {remedy}")
    return {name: found[name] for name in names}


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Type and data of each element."""
    start = 0
    while start + 8 <= len(data):
        kind, size = (int(n) for n in np.frombuffer(data, f"{order}u4", 2, start))
        if kind >> 16:  # at most 4 bytes, which lie in the tag itself
            kind, size, begin, after = kind & 0xFFFF, kind >> 16, start + 4, start + 8
        else:
            begin = start + 8
            after = begin + (size if kind == _COMPRESSED else -(-size // 8) * 8)
        if begin + size > len(data):
            raise ValueError(f"an element of {size} bytes where {len(data) - begin} are left")
        yield kind, data[begin : begin + size]
        start = after


def _array(kind: int, data: bytes, order: str) -> tuple[str, np.ndarray] | None:
    """Name and array of an element; None for what is no array of real numbers."""
    if kind == _COMPRESSED:
        unpacking = zlib.decompressobj()
        data = unpacking.decompress(data, _MOST_BYTES)
        if unpacking.unconsumed_tail:
            raise ValueError(f"more than {_MOST_BYTES >> 20} MiB in one array")
        kind, data = next(_elements(data, order))
    if kind != _MATRIX:
        return None
    parts = list(_elements(data, order))
    flags = int(np.frombuffer(parts[0][1], f"{order}u4", 1)[0])
    if flags & 0xFF not in _CLASSES or flags & _COMPLEX:
        return None
    dims = np.frombuffer(parts[1][1], f"{order}i4")
    numbers = np.frombuffer(parts[3][1], order + _NUMBERS[parts[3][0]])
    return parts[2][1].decode("ascii"), numbers.reshape(dims, order="F").astype(_CLASSES[flags & 0xFF])


def open_hdf5(path: str, names: tuple[str, ...], needed_by: str) -> Any:
    """An open h5py file that holds data sets of these names in itself: links to other files are refused."""
    h5py = files.optional_package("h5py", needed_by)
    try:
        opened = h5py.File(path, "r")
    except OSError as error:
        raise StorageError(f"{path}: no HDF5 file, which MATLAB's v7.3 files are ({error}); fetch it again") from error
    for name in names:
        linked_here = name in opened and isinstance(opened.get(name, getlink=True), h5py.HardLink)
        if not linked_here or not _holds_its_data(opened[name]):
            opened.close()
            raise StorageError(f"{path}: has no data set {name!r} of its own; is it nyu_depth_v2_labeled.mat?")
    return opened


def read_text(opened: Any, cells: str, index: tuple[int, ...], remedy: str) -> str:
    """The text that a cell of the data set `cells` refers to, in an h5py file from `open_hdf5`.

    Raises StorageError for what is no reference to a short array of letters in the file itself: a data set can keep its data in any file.
    """
    h5py = files.optional_package("h5py", cells)
    reference = opened[cells][index]
    # What h5py takes for a name instead of a reference could be a link to another file.
    found = opened[reference] if isinstance(reference, h5py.Reference) and reference else None
    if found is None or not _holds_its_data(found) or found.dtype.kind != "u" or found.size > _MOST_LETTERS:
        at = ", ".join(map(str, index))
        raise StorageError(f"{opened.filename}: {cells}[{at}] refers to no text of up to {_MOST_LETTERS} letters in this file; {remedy}")
    return "".join(map(chr, found[()].ravel()))


def _holds_its_data(found: Any) -> bool:
    """Whether an object of an open file is a data set whose data lie in that file."""
    h5py = files.optional_package("h5py", "HDF5")
    return isinstance(found, h5py.Dataset) and not found.external and not found.is_virtual
