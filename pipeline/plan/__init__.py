"""What should be there: which frames a raw scene gives, which shards hold them, which windows they make."""
