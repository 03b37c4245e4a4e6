"""Reconstructors: the views of a context in, 3D Gaussians out. One file each, chosen by its name."""
