"""Where packed images come from."""
