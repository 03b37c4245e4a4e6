"""Ray jobs that turn raw scenes into columns of shards. May import `training` and `storage`."""
