"""What a run can be told: the schema, the presets, and how files and flags become one config. No torch."""
