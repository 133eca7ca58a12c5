"""Scores of torch models and bundles by the same code: rows, answers, metrics, intervals."""
