"""Bases: find, check and load them; what they need in memory."""
