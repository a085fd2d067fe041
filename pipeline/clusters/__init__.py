"""Ray clusters: joined, filled with actors, examined, planned for, and given jobs."""
