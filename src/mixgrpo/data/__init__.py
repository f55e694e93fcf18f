"""Prompts: reading them, and which ones an iteration gets."""
