"""MVSplat, written anew and checkpoint-compatible: the frozen feed-forward reconstructor of Splat and Distill."""
