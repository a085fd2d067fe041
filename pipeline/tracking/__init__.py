"""MLflow: whether its store answers, a run there, and what models are called."""
