"""Reconstructors: two context views in, one Gaussian per pixel out. One file and one YAML in `configs/reconstructor/` each."""
