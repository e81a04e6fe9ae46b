"""Scores of trained and training generators: samples, features, metrics."""
