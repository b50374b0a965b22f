"""Which grid a model makes, and what a conversion does to it."""
