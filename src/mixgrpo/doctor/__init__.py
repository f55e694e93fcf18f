"""What can be checked before a run: everything that would otherwise fail after the GPUs are paid for."""
