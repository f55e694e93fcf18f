"""Small language models with chat tokenizers, as the newer families encode prompts with. Nothing is downloaded."""

import json
from functools import cache
from typing import Any

from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)

QWEN_HEAD = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)
"""What Qwen-Image's pipeline puts before a prompt and cuts off again, as the 34 tokens of Qwen's own tokenizer."""

_MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""Roughly Qwen3's format; the system's part is a list where the pipeline says so."""


@cache
def _vocabulary() -> tuple[dict[str, int], Any]:
    """Learn one token for every word of the pipelines' own texts; other words are told in bytes or nearly so."""
    trained = Tokenizer(BPE())
    trained.pre_tokenizer = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    trainer = BpeTrainer(
        vocab_size=1000,
        special_tokens=list(_MARKS),
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    words = QWEN_HEAD
    for mark in _MARKS:
        words = words.replace(mark, "")
    trained.train_from_iterator([words, SYSTEM_MESSAGE], trainer)
    model = json.loads(trained.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def chat_tokenizer() -> Any:
    """Return a tokenizer in Qwen's format, to which Qwen-Image's head is the 34 tokens that the pipeline cuts off."""
    vocabulary, merges = _vocabulary()
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=merges, extra_special_tokens=list(_MARKS[1:]))
    tokenizer.chat_template = _CHAT
    assert len(tokenizer(QWEN_HEAD).input_ids) == 34
    assert len(tokenizer(SYSTEM_MESSAGE).input_ids) < 40
    return tokenizer


def _text_config(layers: int) -> dict[str, Any]:
    return {
        "vocab_size": 1024,
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "max_position_embeddings": 2048,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }


def qwen3(layers: int) -> Any:
    """Return what Z-Image reads prompts with."""
    return Qwen3Model(Qwen3Config(**_text_config(layers)))


def qwen3_writer(layers: int) -> Any:
    """Return what FLUX.2 klein reads prompts with, from layers up to the 27th."""
    return Qwen3ForCausalLM(Qwen3Config(**_text_config(layers)))


def qwen_vl(layers: int) -> Any:
    """Return what Qwen-Image reads prompts with."""
    rope = {"rope_type": "default", "mrope_section": [1, 1, 0], "rope_theta": 1000.0}
    eyes = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 8}
    config = Qwen2_5_VLConfig(text_config=_text_config(layers) | {"rope_scaling": rope}, vision_config=eyes)
    return Qwen2_5_VLForConditionalGeneration(config)


def mistral3(layers: int) -> Any:
    """Return what FLUX.2 dev reads prompts with, from layers up to the 30th."""
    eyes = {
        "model_type": "pixtral",
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
    }
    text = _text_config(layers) | {"model_type": "mistral", "sliding_window": None}
    return Mistral3ForConditionalGeneration(Mistral3Config(text_config=text, vision_config=eyes, image_token_index=1))
