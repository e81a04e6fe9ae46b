"""The format of shard sets: tars, index, tables, labels, and the storage that holds them."""
