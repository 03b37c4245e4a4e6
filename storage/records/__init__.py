"""What the rows of each column hold, as members of a shard: one file a kind of column."""

SKIPPED = "skipped.json"  # in a row of `gaussians` or `operators` that holds nothing: why
