"""The networks of the reconstructors: images and cameras to Gaussians, on tensors."""
