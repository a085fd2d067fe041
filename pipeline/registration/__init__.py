"""Versions of models: what one holds, which is better, promoted, served, pruned."""
