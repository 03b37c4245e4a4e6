"""Probes: how much a frozen network's features know of depth, normals, classes and of the same point in another view."""
