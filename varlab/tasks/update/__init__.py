"""What one update needs: optimizer, schedule, EMA, counters."""
