"""Surfaces from depth and cameras: where a pixel's point lies in another view, whether it is visible there, and its normal."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from training.probes.data.base import ProbeFrame

ANGLES = (0, 15, 30, 60, 180)  # degrees between the rays to one point: the bins by which results are told apart
OCCLUSION = (0.03, 0.01)  # a point is visible where the depth that is seen there is its own, within 3 % and 1 cm


class Seen(NamedTuple):
    """Points of one view in another. pixels: [N,2] (x, y) in the other; visible: [N] bool; angle: [N] degrees between the two rays."""

    pixels: np.ndarray
    visible: np.ndarray
    angle: np.ndarray


def reproject(first: ProbeFrame, second: ProbeFrame, pixels_n2: np.ndarray) -> Seen:
    """Where the surface points behind some pixels of the first view lie in the second.

    Args:
        first, second: frames with depth, K and c2w.
        pixels_n2: (x, y) in the first; its depth is read at the pixel that each falls into.

    Returns:
        A point without depth at either end, behind the camera, outside the image or occluded is not visible.
    """
    (K0, c2w0, depth0), (K1, c2w1, depth1) = _camera_and_depth(first), _camera_and_depth(second)
    depth, inside = _depth_at(depth0, pixels_n2)
    rays = np.concatenate([(pixels_n2 - K0[:2, 2]) / K0[[0, 1], [0, 1]], np.ones((len(pixels_n2), 1))], 1)
    points = (rays * depth[:, None]) @ c2w0[:3, :3].T + c2w0[:3, 3]
    there = (points - c2w1[:3, 3]) @ c2w1[:3, :3]  # the inverse of a rotation is its transpose
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.nan_to_num((there / there[:, 2:]) @ K1.T, nan=-1.0, posinf=-1.0, neginf=-1.0)[:, :2]
    seen, there_inside = _depth_at(depth1, found)
    relative, metres = OCCLUSION
    visible = inside & there_inside & (depth > 0) & (seen > 0) & (there[:, 2] > 0)
    visible &= np.abs(seen - there[:, 2]) <= relative * there[:, 2] + metres
    a, b = c2w0[:3, 3] - points, c2w1[:3, 3] - points
    cosine = (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-12)
    return Seen(found, visible, np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def _camera_and_depth(frame: ProbeFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if frame.K is None or frame.c2w is None or frame.depth is None:
        raise ValueError(f"frame {frame.key}: matching views needs its depth and camera (K and c2w), or pairs with points")
    return frame.K, frame.c2w, frame.depth


def _depth_at(depth_hw: np.ndarray, pixels_n2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth [N] of the pixel that each point falls into, and whether there is one; the nearest pixel's, as edges must not be averaged."""
    height, width = depth_hw.shape
    inside = (pixels_n2 >= 0).all(1) & (pixels_n2[:, 0] < width) & (pixels_n2[:, 1] < height)
    x, y = np.where(inside[:, None], pixels_n2, 0).astype(np.int64).T
    return np.where(inside, depth_hw[y, x], 0).astype(np.float64), inside


def normals_from_depth(
    depth_hw: np.ndarray, K: np.ndarray, window: int = 7, tolerance: float = 0.0005, max_angle: float = 80.0
) -> np.ndarray:
    """Surface normals by a plane fitted around each pixel.

    In a pinhole camera the inverse depth of a plane is linear in the pixel's position, so least squares on it has no bias. A pixel whose
    neighbourhood is no plane (edges of depth, creases, holes) has no normal, nor one that is seen at a grazing angle.

    Args:
        depth_hw: metres along z, 0 where unknown.
        K: [3,3] pixels.
        window: side of the neighbourhood in pixels, odd; seven tenths of it must be known.
        tolerance: the largest deviation from the plane, root mean square, as a share of the depth; a millimetre comes on top, for what
            a stored depth is rounded to.
        max_angle: degrees between normal and ray.

    Returns:
        [H,W,3] float32 in camera axes, unit length, facing the camera; 0 where there is none.
    """
    known = depth_hw > 0
    inverse = np.divide(1.0, depth_hw, out=np.zeros(depth_hw.shape), where=known)
    offset = np.arange(window) - window // 2
    dx, dy = np.meshgrid(offset / K[0, 0], offset / K[1, 1])
    weight = known.astype(np.float64)

    def total(values: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        return cv2.filter2D(values, cv2.CV_64F, kernel, borderType=cv2.BORDER_CONSTANT)

    basis = (dx, dy, np.ones_like(dx))  # around the pixel itself, so that the sums keep their digits
    gram = np.empty((*depth_hw.shape, 3, 3))
    right = np.empty((*depth_hw.shape, 3))
    for i in range(3):
        right[..., i] = total(inverse, basis[i])
        for j in range(i, 3):
            gram[..., i, j] = gram[..., j, i] = total(weight, basis[i] * basis[j])
    enough = known & (gram[..., 2, 2] >= 0.7 * window * window)
    normals = np.zeros((*depth_hw.shape, 3), np.float32)
    if not enough.any():
        return normals
    squares, gram, right, z = total(inverse**2, basis[2])[enough], gram[enough], right[enough], depth_hw[enough].astype(np.float64)
    plane = np.linalg.solve(gram, right[..., None])[..., 0]  # inverse depth = plane . (dx, dy, 1)
    residual = np.sqrt(np.maximum(squares - (plane * right).sum(-1), 0) / gram[:, 2, 2]) * z
    rows, columns = np.nonzero(enough)
    ray = np.stack([(columns + 0.5 - K[0, 2]) / K[0, 0], (rows + 0.5 - K[1, 2]) / K[1, 1], np.ones(len(rows))], 1)
    plane[:, 2] -= plane[:, 0] * ray[:, 0] + plane[:, 1] * ray[:, 1]  # now in the camera's own coordinates
    unit = -plane / np.maximum(np.linalg.norm(plane, axis=1, keepdims=True), 1e-12)
    facing = -(unit * ray).sum(1) / np.linalg.norm(ray, axis=1)
    good = (residual <= tolerance + 0.001 / z) & (facing > np.cos(np.radians(max_angle)))
    normals[rows[good], columns[good]] = unit[good]
    return normals
