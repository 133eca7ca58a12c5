"""Rounding to the deployment grid: one quantiser for training, export and tests, and the ways to round with it."""
