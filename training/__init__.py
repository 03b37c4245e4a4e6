"""Models, splatting, the distillation step, its loader. May import `storage`, never `pipeline`."""
