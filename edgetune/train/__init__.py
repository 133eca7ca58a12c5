"""The loop, its loss, optimizers and schedules, checkpoints and trackers."""
