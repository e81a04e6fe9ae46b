"""The commands: one module each, with ``run(cfg, directory)``."""
