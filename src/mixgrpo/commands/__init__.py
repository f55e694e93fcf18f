"""The commands of `mixgrpo`: one module each, imported only when it is called for."""
