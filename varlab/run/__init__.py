"""A run's directory, its record, its name, and where it came from."""
