"""Features: of real images and of samples, a file for each batch, and their statistics."""
