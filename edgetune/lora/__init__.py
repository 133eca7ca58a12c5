"""Adapters: attach, save, load and read them; fold them into their base."""
