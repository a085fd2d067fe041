"""Training: the order of the images, the step, the state that survives, the curve."""
