"""A run: from a config to a folder with a better model in it."""
