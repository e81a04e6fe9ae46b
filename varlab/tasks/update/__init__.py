"""The parts of an update: optimizer, schedule, EMA, counters."""
