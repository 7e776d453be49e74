"""The training loop, losses, optimiser, recipes, several machines, and what a run's log shows."""
