"""Small stand-ins with random weights for models and rewards, of the same classes, and a run with them: a dry run."""
