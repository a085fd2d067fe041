"""The command `doctor`: what a run needs of its cluster, storage, shards and MLflow, seen before it is asked for."""
