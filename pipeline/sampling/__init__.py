"""Sampling: chunks of seeds on a pool of actors."""
