"""Readers of raw scenes, by the name of their layout.

reader = make_reader(config.layout)
scene = reader.open("s3://bucket/scannetpp", "3f15a9266d", width=336, height=224, keep_bad=False)
frames = [scene.read(entry) for entry in scene.index.frames]
"""

from configs.fields import Choice
from configs.schema.data import READERS
from pipeline.readers.base import BadFrame, BadScene, FrameEntry, Reader, Scene, SceneIndex, Skip


def make_reader(choice: Choice) -> Reader:
    """The reader of the layout that a configuration chose."""
    reader: Reader = READERS.get(choice.name).make(choice.config)
    return reader


__all__ = ["BadFrame", "BadScene", "FrameEntry", "Reader", "Scene", "SceneIndex", "Skip", "make_reader"]
