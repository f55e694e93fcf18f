"""Flow matching as pure functions: schedules, single steps, the high-order solver, plans, noise, the rollout.

Nothing here knows a config, a model class or a rank. `sigmas` and `plan` are plain Python without torch.
"""
