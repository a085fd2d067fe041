"""Models: from disk or the registry into memory, drawn from, trained on from, exchanged with diffusers."""
