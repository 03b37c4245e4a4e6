"""Reconstructors: the views of a context in, 3D Gaussians out. One file and one YAML in `configs/reconstructor/` each."""
