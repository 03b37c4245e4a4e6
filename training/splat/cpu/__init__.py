"""The splat on a CPU: kernels compiled by numba, and what drives them."""
