"""What a run will need, in memory and work, found out without training."""
