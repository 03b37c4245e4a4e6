"""What the rows of each column hold, as members of a shard: one file a kind of column."""
