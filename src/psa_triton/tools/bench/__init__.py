"""Times of attention on this machine, for the shapes of known models."""
