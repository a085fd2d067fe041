"""Training: the step, the state that survives, the workers, the curve."""
