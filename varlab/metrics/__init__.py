"""Metrics, built on torchmetrics; they neither sample nor train."""
