"""Scores of trained and training models: samples, features, metrics."""
