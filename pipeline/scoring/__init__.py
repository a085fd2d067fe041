"""Scores: of samples against real images, of models against models, and what a person looks at."""
