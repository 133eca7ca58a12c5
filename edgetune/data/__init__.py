"""Rows to learn from: files -> rows -> examples -> token ids and labels -> packed batches."""
