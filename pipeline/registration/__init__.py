"""MLflow: runs with their curves and pictures, and versions of registered models."""
