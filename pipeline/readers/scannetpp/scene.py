"""One scene, ready to be read frame by frame: photograph, pinhole camera, validity, labels and depth at the stored size."""

from __future__ import annotations

import io
import struct
import zlib
from collections import Counter
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageFile

from pipeline.readers.base import BadFrame, BadScene, FrameEntry
from pipeline.readers.scannetpp.layout import read_scene
from pipeline.readers.scannetpp.mesh import MeshCaster, SceneMesh, read_mesh
from pipeline.readers.undistort import Undistorter
from storage.domain import Camera, Frame
from storage.location import NotFound, read_bytes

MAX_ANONYMISED_SHARE = 0.3
MESH_MARGIN_M = 1.0
MAX_MISS_SHARE = 0.5
MIN_MEDIAN_DEPTH_M = 0.15

_COARSE_WIDTH, _COARSE_HEIGHT = 32, 24  # rays that judge a pose: 768, about a hundredth of a stored frame


class SceneReader:
    """Frames of `scene_id` under `root` (a URL) at `width` x `height`.

    The index is read at once and raises BadScene as `read_scene` does. Mesh, search tree and undistortion maps are made on first use and
    kept, so one reader per scene and process; the first use may raise BadScene (mesh_missing, mesh_invalid, transforms_invalid).
    """

    def __init__(self, root: str, scene_id: str, width: int, height: int, keep_bad: bool = False) -> None:
        self.root, self.scene_id, self.width, self.height = root, scene_id, width, height
        self.index = read_scene(root, scene_id, keep_bad)
        self._clear_mask: bytes | None = None

    @cached_property
    def mesh(self) -> SceneMesh:
        return read_mesh(self.root, self.scene_id)

    @cached_property
    def _caster(self) -> MeshCaster:
        return MeshCaster(self.mesh.vertices, self.mesh.faces, self.mesh.face_object_ids)

    @cached_property
    def _mesh_box(self) -> tuple[np.ndarray, np.ndarray]:
        used = self.mesh.vertices[self.mesh.faces.ravel()]
        return used.min(axis=0) - MESH_MARGIN_M, used.max(axis=0) + MESH_MARGIN_M

    @cached_property
    def _undistorter(self) -> Undistorter:
        try:
            return Undistorter(self.index.lens, self.width, self.height)
        except ValueError as error:
            raise BadScene(self.scene_id, "transforms_invalid", str(error)) from error

    def camera(self, entry: FrameEntry) -> Camera:
        """The pinhole camera of the stored image."""
        return Camera(entry.c2w, self._undistorter.K, self.width, self.height)

    def check_pose(self, entry: FrameEntry) -> None:
        """Asks the scan about a pose, by a coarse grid of rays, without the image. Raises BadFrame: pose_outside_mesh, pose_bad_depth."""
        low, high = self._mesh_box
        centre = entry.c2w[:3, 3]
        if (centre < low).any() or (centre > high).any():
            detail = f"camera at {np.array2string(centre, precision=2)} m, more than {MESH_MARGIN_M:g} m outside the scan"
            raise BadFrame(self.scene_id, entry.name, "pose_outside_mesh", detail)
        scale = np.diag([_COARSE_WIDTH / self.width, _COARSE_HEIGHT / self.height, 1.0])
        depth, _ = self._caster.cast(Camera(entry.c2w, scale @ self._undistorter.K, _COARSE_WIDTH, _COARSE_HEIGHT))
        hit = depth > 0
        if hit.mean() < 1 - MAX_MISS_SHARE:
            raise BadFrame(self.scene_id, entry.name, "pose_bad_depth", f"{1 - hit.mean():.0%} of the rays miss the scan")
        median = float(np.median(depth[hit]))
        if median < MIN_MEDIAN_DEPTH_M:
            raise BadFrame(self.scene_id, entry.name, "pose_bad_depth", f"median depth {median:.3f} m: the camera touches a surface")

    def read(self, entry: FrameEntry) -> Frame:
        """The frame at the stored size. One ray per pixel gives its depth and its labels, the ids of the mesh's annotated objects.

        Args:
            entry: one of `index.frames`.

        Returns:
            Image, camera, validity, depth and labels, each at width x height.

        Raises:
            BadFrame: pose_outside_mesh, pose_bad_depth, image_missing, image_unreadable, image_size, mask_missing, mask_unreadable or
                anonymised. The whole image is decoded to know: a cut JPEG has a flawless header.
            BadScene: as the first use of mesh and lens does.
        """
        self.check_pose(entry)
        image, mask = self._image(entry), self._mask(entry)
        camera = self.camera(entry)
        depth, labels = self._caster.cast(camera)
        return Frame(
            name=entry.name,
            camera=camera,
            image=self._undistorter.image(image),
            labels=labels,
            valid=self._undistorter.valid(mask),
            depth=depth,
        )

    def report(self) -> dict[str, Any]:
        """What the scene's report should say, as plain JSON values. Shares are of mesh vertices; each K is in pixels of its own image."""
        lens, objects, vertex_count = self.index.lens, self.mesh.objects, len(self.mesh.vertices)
        return {
            "scene": self.scene_id,
            "frames": len(self.index.frames),
            "skipped": dict(sorted(Counter(skip.reason for skip in self.index.skipped).items())),
            "notes": list(self.index.notes),
            "camera_model": lens.model,
            "distortion": list(lens.distortion),
            "source_size": [lens.width, lens.height],
            "stored_size": [self.width, self.height],
            "K_source": lens.matrix.tolist(),
            "K_stored": self._undistorter.K.tolist(),
            "outside_source_share": float(1 - self._undistorter.valid(None).mean()),
            "vertices": vertex_count,
            "faces": len(self.mesh.faces),
            "objects": {str(object_id): label for object_id, label in sorted(objects.labels.items())},
            "multiply_claimed_share": objects.multiply_claimed / vertex_count,
            "unlabelled_share": objects.unclaimed / vertex_count,
            "unknown_segments": objects.unknown_segments,
        }

    def _image(self, entry: FrameEntry) -> np.ndarray:
        """[h,w,3] uint8 RGB of the source size."""
        data = self._bytes(entry, entry.image_url, "image_missing")
        rgb = self._decoded(entry, entry.image_url, data, "RGB", "image_unreadable")
        self._check_size(entry, rgb, "image_size")
        return rgb

    def _mask(self, entry: FrameEntry) -> np.ndarray | None:
        """[h,w] uint8 of the source size, 255 = valid; None where the frame has no mask, or one that hides nothing."""
        if entry.mask_url is None:
            return None
        data = self._bytes(entry, entry.mask_url, "mask_missing")
        if data == self._clear_mask:  # most frames hide nothing, and their masks are the same file
            return None
        mask = self._decoded(entry, entry.mask_url, data, "L", "mask_unreadable")
        self._check_size(entry, mask, "mask_unreadable")
        share = np.count_nonzero(mask < 255) / mask.size
        if share == 0:
            self._clear_mask = data
            return None
        if share > MAX_ANONYMISED_SHARE:
            detail = f"{share:.0%} of the pixels are masked, at most {MAX_ANONYMISED_SHARE:.0%} may be"
            raise BadFrame(self.scene_id, entry.name, "anonymised", detail)
        return mask

    def _check_size(self, entry: FrameEntry, pixels: np.ndarray, reason: str) -> None:
        lens = self.index.lens
        if pixels.shape[:2] != (lens.height, lens.width):
            size = f"{pixels.shape[1]}x{pixels.shape[0]}, transforms.json says {lens.width}x{lens.height}"
            raise BadFrame(self.scene_id, entry.name, reason, f"{size}; intrinsics and files must be of one resolution")

    def _bytes(self, entry: FrameEntry, url: str, missing: str) -> bytes:
        try:
            return read_bytes(url)
        except NotFound as error:
            raise BadFrame(self.scene_id, entry.name, missing, f"{url} has gone since the scene was listed") from error

    def _decoded(self, entry: FrameEntry, url: str, data: bytes, mode: str, unreadable: str) -> np.ndarray:
        # A switch for the whole process that other packages turn on; with it a cut JPEG decodes to grey without a word.
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        try:
            # No EXIF rotation: the intrinsics belong to the pixels as they lie in the file.
            with Image.open(io.BytesIO(data)) as image:
                # OpenCV gives the same pixels sooner, but decodes a cut JPEG to grey without a word: what does not end in the end-of-image
                # marker, and what OpenCV cannot read, is left to Pillow.
                if image.format == "JPEG" and image.mode == mode == "RGB" and data.endswith(b"\xff\xd9"):
                    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
                    if pixels is not None:
                        return pixels
                return np.asarray(image.convert(mode))
        except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, cv2.error, Image.DecompressionBombError) as error:
            raise BadFrame(self.scene_id, entry.name, unreadable, f"{url}: {error}") from error
