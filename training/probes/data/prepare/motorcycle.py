"""Writes scikit-image's Motorcycle pair as a folder that `data=stereo` reads.

    python -m training.probes.data.prepare.motorcycle FOLDER [SOURCE]

SOURCE: the wheel of scikit-image (`pip download --no-deps scikit-image`) or a folder with its data; without it the installed package. The
pair is of Middlebury's stereo benchmark of 2014, down-sampled by 4: cite Scharstein et al., GCPR 2014. Nothing of it is kept here.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import sys
import zipfile

import numpy as np

from storage.location import StorageError
from training.probes.data.stereo import INDEX

_FILES = ("motorcycle_left.png", "motorcycle_right.png", "motorcycle_disp.npz")
# Middlebury's full-size principal point is 4 times (311.193, 254.877), where pixel centres are whole numbers. Of pixels that are the
# mean of 4 by 4, with centres at +0.5, it lies 0.125 further.
_PAIR = {"fx": 994.978, "cx": 311.193 + 0.125, "cy": 254.877 + 0.125, "doffs": 31.086, "baseline": 0.193001}


def write_motorcycle(folder: str, source: str | None = None) -> None:
    """Raises StorageError where the source does not hold the three files."""
    left, right, disparity = _read(source)
    with np.load(io.BytesIO(disparity), allow_pickle=False) as arrays:
        values = arrays[arrays.files[0]]
    os.makedirs(folder, exist_ok=True)
    for name, data in (("left.png", left), ("right.png", right)):
        with open(os.path.join(folder, name), "wb") as stream:
            stream.write(data)
    np.save(os.path.join(folder, "disparity.npy"), values, allow_pickle=False)
    with open(os.path.join(folder, INDEX), "w") as text:
        json.dump({"name": "motorcycle", "left": "left.png", "right": "right.png", "disparity": "disparity.npy", **_PAIR}, text, indent=1)


def _read(source: str | None) -> list[bytes]:
    if source is None:
        spec = importlib.util.find_spec("skimage")
        if spec is None or not spec.submodule_search_locations:
            raise StorageError("scikit-image is not installed; pip install it, or give its wheel (pip download --no-deps scikit-image)")
        source = os.path.join(spec.submodule_search_locations[0], "data")
    try:
        if zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as wheel:
                return [wheel.read(f"skimage/data/{name}") for name in _FILES]
        found = []
        for name in _FILES:
            with open(os.path.join(source, name), "rb") as stream:
                found.append(stream.read())
        return found
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise StorageError(f"{source}: does not hold {', '.join(_FILES)} ({error}); give the wheel of scikit-image 0.26") from error


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python -m training.probes.data.prepare.motorcycle FOLDER [SOURCE]")
    try:
        write_motorcycle(*sys.argv[1:])
    except StorageError as error:
        sys.exit(str(error))
