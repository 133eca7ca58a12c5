"""The deployment grid: one quantiser for training, export and tests."""
