"""Scores: of samples against real images, how likely real images are, and what a person looks at."""
