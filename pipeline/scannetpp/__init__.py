"""ScanNet++ in its official folder layout -> undistorted frames of a stored size, with object labels and depth cast from the scan's mesh.

`BadScene` sets a scene aside, `BadFrame` drops a frame; both carry a reason to count by.

    reader = SceneReader("s3://bucket/scannetpp", "3f15a9266d", width=336, height=224)
    for entry in reader.index.frames:
        frame = reader.read(entry)
"""

from pipeline.scannetpp.layout import BadFrame, BadScene, FrameEntry, Lens, SceneIndex, Skip, pose_from_json, read_scene, read_split
from pipeline.scannetpp.mesh import MeshCaster, SceneMesh, read_mesh
from pipeline.scannetpp.scene import SceneReader
from pipeline.scannetpp.undistort import Undistorter

__all__ = [
    "BadFrame",
    "BadScene",
    "FrameEntry",
    "Lens",
    "MeshCaster",
    "SceneIndex",
    "SceneMesh",
    "SceneReader",
    "Skip",
    "Undistorter",
    "pose_from_json",
    "read_mesh",
    "read_scene",
    "read_split",
]
