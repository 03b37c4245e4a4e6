"""Readers of raw scenes, by the name of their layout.

reader = make_reader("scannetpp")
scene = reader.open("s3://bucket/scannetpp", "3f15a9266d", width=336, height=224, keep_bad=False)
frames = [scene.read(entry) for entry in scene.index.frames]
"""

from configs.registry import Registry
from pipeline.readers.base import BadFrame, BadScene, FrameEntry, Reader, Scene, SceneIndex, Skip

READERS = Registry("layout", "pipeline.readers", "splat_and_distill.readers", shared=("base", "lens", "undistort"))


def make_reader(layout: str) -> Reader:
    """The reader of a layout. Raises ConfigError with the choices where there is none of that name."""
    choice = READERS.get(layout)
    reader: Reader = choice.make(choice.Config())
    return reader


__all__ = ["READERS", "BadFrame", "BadScene", "FrameEntry", "Reader", "Scene", "SceneIndex", "Skip", "make_reader"]
