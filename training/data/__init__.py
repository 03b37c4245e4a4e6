"""From a dataset on storage to the batches of a training step."""
