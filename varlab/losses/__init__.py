"""The losses of a tokenizer: reconstruction, perceptual and adversarial terms, and their weights."""
