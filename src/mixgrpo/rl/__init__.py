"""Group-relative policy optimisation as pure functions: windows, advantages, the loss. `window` is plain Python."""
