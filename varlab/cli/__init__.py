"""The command line: Hydra, paths, run directories, ranks. No science."""
