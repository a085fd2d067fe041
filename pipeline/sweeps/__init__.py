"""Sweeps: many ways to draw from one checkpoint, side by side."""
