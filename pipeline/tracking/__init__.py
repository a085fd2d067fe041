"""MLflow's store: whether it answers, one run with its curves and pictures, and how models are called there."""
