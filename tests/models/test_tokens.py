"""How many tokens a prompt takes is what the text encoder gets, chat and all."""

from pathlib import Path
from typing import Any

import pytest

from tests.models.families import save
from tests.models.test_parity import PROMPTS, load


@pytest.mark.parametrize(
    ("name", "cut_off"), [("flux2-dev", 0), ("flux2-klein", 0), ("z-image-turbo", 0), ("qwen-image-unguided", 34)]
)
def test_tokens_are_those_that_the_text_encoder_gets(name: str, cut_off: int, tmp_path: Path) -> None:
    model = load(name, save(name, tmp_path / "model"), max_sequence_length=256)
    got: list[int] = []

    def listen(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        got.extend((kwargs["attention_mask"].sum(1) - cut_off).tolist())

    model.pipeline.text_encoder.register_forward_pre_hook(listen, with_kwargs=True)
    prompts = [*PROMPTS, "", "x" * 300]
    model.encode(prompts)
    counted = model.count_tokens(prompts)
    assert counted[:3] == got[:3]
    assert counted[3] > 256
    assert (got[3] == 256) == (cut_off == 0), "Qwen-Image cuts after it has encoded"
