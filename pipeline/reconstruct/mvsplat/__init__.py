"""MVSplat, written anew and checkpoint-compatible: the frozen feed-forward reconstructor of Splat and Distill."""

from pipeline.reconstruct.mvsplat.reconstructor import Config, MVSplatReconstructor, make

__all__ = ["Config", "MVSplatReconstructor", "make"]
