"""Ray clusters: joined, filled with actors, and given jobs."""
