"""Token shards: who writes them, and whether a training encodes its images once, before its first update."""
