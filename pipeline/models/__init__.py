"""Models: from disk or the registry into memory, drawn from, exchanged with diffusers."""
