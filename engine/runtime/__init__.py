"""How a planned job runs: subtasks, channels, workers, the checkpoint coordinator, recovery."""
