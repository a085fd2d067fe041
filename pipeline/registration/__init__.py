"""Versions of models: what one holds, which is better, compared, promoted, served, pruned."""
