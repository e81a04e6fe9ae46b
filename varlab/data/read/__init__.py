"""Read indexed shards: samples, epoch orders, batches, loaders."""
