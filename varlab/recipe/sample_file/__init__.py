"""The file of samples that evaluators read."""
