"""How the shards of each column are made: one file a column, and the one runner of them all."""
