"""A new model every night: scored beside the champion, promoted, taken back, thrown away."""
