"""What is measured, through torchmetrics: never sampling, never training."""
