"""Lightning's Trainer, and what a user puts beside it: loggers, callbacks, a profiler."""
