"""Synthetic tasks and small real data: tensors from a seed, no download."""
