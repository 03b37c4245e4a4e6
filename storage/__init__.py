"""What a record is, and how it lies in a bucket. Imports neither `training` nor `pipeline`."""
