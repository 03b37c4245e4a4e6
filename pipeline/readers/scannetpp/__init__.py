"""ScanNet++ in its official folder layout: undistorted frames of a stored size, with object labels and depth cast from the scan's mesh."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.readers.scannetpp.layout import ScanNetPPIndex, read_scene, read_split
from pipeline.readers.scannetpp.scene import SceneReader


@dataclass
class Config:
    """This layout has no keys of its own."""


class ScanNetPPReader:
    """A `Reader` of the official layout; masks of objects come with its frames."""

    def scenes(self, root: str, split: str) -> list[str]:
        return read_split(root, split)

    def listing(self, root: str, scene_id: str, keep_bad: bool) -> ScanNetPPIndex:
        return read_scene(root, scene_id, keep_bad)

    def open(self, root: str, scene_id: str, width: int, height: int, keep_bad: bool) -> SceneReader:
        return SceneReader(root, scene_id, width, height, keep_bad)


def make(config: Config) -> ScanNetPPReader:
    return ScanNetPPReader()
