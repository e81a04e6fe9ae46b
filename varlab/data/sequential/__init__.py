"""Read shards without an index, through webdataset."""
