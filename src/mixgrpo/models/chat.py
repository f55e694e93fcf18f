"""Prompts as a user's part of a chat, which is how Qwen3 gets them."""

from collections.abc import Sequence
from typing import Any


def as_chats(tokenizer: Any, prompts: Sequence[str], *, thinking: bool) -> list[str]:
    """Return what the tokenizer gets of each prompt: in the marks of the chat, up to where an answer would begin."""
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    return tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True, enable_thinking=thinking)
