"""The course of a training, as its length decides it: when a run may be extended, and from where another may branch."""
