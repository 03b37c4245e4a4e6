"""From the fisheye photograph to a pinhole image of the stored size, its intrinsics and its validity mask.

The new focal lengths are the official ones. The rest is exact where the official recipe is off by up to two pixels: the half pixel between
COLMAP's and OpenCV's pixel centres is honoured both ways, and the principal point lies at the middle of the image.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from pipeline.readers.lens import Lens

_HALF_PIXEL = np.array([[0.0, 0.0, 0.5], [0.0, 0.0, 0.5], [0.0, 0.0, 0.0]])  # OpenCV counts from the centre of the top-left pixel


def pinhole_matrix(lens: Lens) -> np.ndarray:
    """K [3,3] float64 after undistortion at the lens's own size: `lens.matrix` of a PINHOLE, else the official one (balance 0, centred)."""
    if lens.model == "PINHOLE":
        return lens.matrix
    K = cv2.fisheye.estimateNewCameraMatrixForUndistortRectify(
        lens.matrix, np.array(lens.distortion), (lens.width, lens.height), np.eye(3), balance=0.0
    )
    if not np.isfinite(K).all() or K[0, 0] <= 0 or K[1, 1] <= 0:
        raise ValueError(f"no pinhole view exists for this lens: {lens}")
    K[0, 2], K[1, 2] = lens.width / 2, lens.height / 2
    return K


class Undistorter:
    """Turns photographs of `lens` into pinhole images of `width` x `height`: undistorted at full size, averaged down, squashed not cropped.

    `K` [3,3] float64 is in pixels of the output, centres at +0.5; fx and fy differ where the aspect ratio changes. The maps are made once;
    use one object for all frames of a scene. Raises ValueError for a lens that has no pinhole view.
    """

    def __init__(self, lens: Lens, width: int, height: int) -> None:
        self.lens, self.width, self.height = lens, width, height
        K_full = pinhole_matrix(lens)
        size = lens.width, lens.height
        self.K = np.diag([width / lens.width, height / lens.height, 1.0]) @ K_full
        self._corner: np.ndarray | None = None
        if lens.model == "OPENCV_FISHEYE":
            # Fixed point, 1/32 pixel: what the bilinear kernel uses anyway, and faster. `_corner` is the upper left of the four read.
            self._corner, self._fraction = cv2.fisheye.initUndistortRectifyMap(
                lens.matrix - _HALF_PIXEL, np.array(lens.distortion), np.eye(3), K_full - _HALF_PIXEL, size, cv2.CV_16SC2
            )
        # Bands, each a whole number of rows before and after the averaging: rows of the output, rows that are averaged, first and last row
        # of the photograph that these read. One band where the output is larger: OpenCV then interpolates, across borders of bands too.
        shrinks = width <= lens.width and height <= lens.height
        count = math.gcd(lens.height, height) if shrinks else 1
        tall, low = lens.height // count, height // count
        self._bands = []
        for band in range(count):
            full = slice(band * tall, (band + 1) * tall)
            read = np.arange(lens.height)[full] if self._corner is None else self._corner[full, :, 1]
            self._bands.append((slice(band * low, (band + 1) * low), full, int(read.min()), int(read.max()) + 1))
        self._valid_everywhere = np.empty((height, width), bool)
        self._valid_everywhere = self._valid(np.zeros((lens.height, lens.width), bool), -math.inf, math.inf)

    def image(self, rgb: np.ndarray) -> np.ndarray:
        """[lens.height, lens.width, 3] uint8 -> [height, width, 3] uint8. Beyond the source it is mirrored; `valid` is False there."""
        self._check(rgb.shape[:2])
        if self._corner is not None:
            rgb = cv2.remap(rgb, self._corner, self._fraction, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        return cv2.resize(rgb, (self.width, self.height), interpolation=cv2.INTER_AREA)

    def valid(self, anon_mask: np.ndarray | None) -> np.ndarray:
        """[lens.height, lens.width] uint8 (255 valid, anything less anonymised) or None for all valid -> [height, width] bool.

        False where any pixel that enters the output pixel is anonymised or lies outside the photograph.
        """
        if anon_mask is None:
            return self._valid_everywhere.copy()
        self._check(anon_mask.shape)
        hidden = anon_mask < 255
        rows = np.flatnonzero(hidden.any(axis=1))
        return self._valid(hidden, rows[0], rows[-1]) if len(rows) else self._valid_everywhere.copy()

    def _valid(self, hidden: np.ndarray, first: float, last: float) -> np.ndarray:
        """hidden [lens.height, lens.width] bool, of which rows `first` to `last` matter: bands that read others are as ever."""
        touched: np.ndarray = hidden.view(np.uint8)
        if self._corner is not None:
            # touched[y + 1, x + 1]: whether one of the four pixels from (x, y) to (x + 1, y + 1) is hidden or outside.
            padded = np.pad(touched, 1, constant_values=1)
            touched = padded[:-1, :-1] | padded[1:, :-1] | padded[:-1, 1:] | padded[1:, 1:]
        valid = self._valid_everywhere.copy()
        for out, full, low, high in self._bands:
            if high < first or last < low:
                continue
            seen = touched[full]
            if self._corner is not None:
                corner, whole_pixels = self._corner[full] + 1, np.empty(0, np.uint16)
                seen = cv2.remap(touched, corner, whole_pixels, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=1)
            # In float: a share of one anonymised pixel in thirty must not round to nothing.
            size = self.width, out.stop - out.start
            valid[out] = cv2.resize(seen.astype(np.float32), size, interpolation=cv2.INTER_AREA) == 0.0
        return valid

    def _check(self, shape: tuple[int, ...]) -> None:
        if shape != (self.lens.height, self.lens.width):
            raise ValueError(f"{shape[1]}x{shape[0]} pixels for a lens of {self.lens.width}x{self.lens.height}; they must be of one size")
