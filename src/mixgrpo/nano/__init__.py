"""flux-nano: the recipe that pretrains the bundled model, `python -m mixgrpo.nano`."""
