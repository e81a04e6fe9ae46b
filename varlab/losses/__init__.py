"""What a tokenizer is trained against: reconstruction, perceptual and adversarial terms, and how they are weighed."""
