"""The splat on CUDA, by gsplat."""
