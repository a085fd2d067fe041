"""MLflow: runs with their curves and pictures, and the versions of models: which is better, promoted, pruned."""
