"""Metrics of two sets of features: how far their distributions are apart."""
