"""Measure how fast varlab's own work is done on this machine, and what its time is spent on (``varlab bench``)."""
