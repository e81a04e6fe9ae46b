"""Statistics over runs: power laws, paired tests, frontiers."""
