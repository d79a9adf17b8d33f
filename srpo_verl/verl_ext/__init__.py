"""Adapters between the algorithm and veRL 0.9.1. Importing one of them puts it into veRL's registries."""
