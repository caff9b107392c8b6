"""Synthetic tasks and small real data, each a function that returns tensors and needs no download."""
