"""Ray clusters: joined, filled with actors, examined, and given jobs."""
