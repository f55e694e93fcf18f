"""A run with a prompt cache is the run without one, and has no text encoders in memory."""

from collections.abc import Callable
from pathlib import Path

from mixgrpo.config.schema import Config
from mixgrpo.data.sets import load_prompt_sets
from mixgrpo.train.export import load_run_model
from mixgrpo.train.loop import Trainer, train
from mixgrpo.train.prompts import encode_ahead
from tests.train.test_compare import assert_same


def test_a_run_with_a_cache_is_the_run_without(make_config: Callable[..., Config], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    plain, cached = make_config(), make_config(model={"prompt_cache": str(cache)})
    train(plain, tmp_path / "plain")
    trainer = Trainer(cached, tmp_path / "cached", resume=False, sinks=())
    model = trainer.policy.model
    assert model.pipeline.text_encoder is model.pipeline.text_encoder_2 is None  # pyright: ignore[reportAttributeAccessIssue]
    trainer.run_all()
    trainer.close()
    assert_same(tmp_path / "plain", tmp_path / "cached")
    # What comes out is whole, and draws any prompt.
    load_run_model(tmp_path / "cached").encode(["a prompt that no cache has"])
    assert (tmp_path / "cached" / "export" / "text_encoder_2" / "model.safetensors").is_file()


def test_only_what_a_run_will_see_is_encoded(make_config: Callable[..., Config], tmp_path: Path) -> None:
    config = make_config(iterations=2, model={"prompt_cache": str(tmp_path)}, eval={"num_prompts": 3})
    told: list[tuple[str, int, int]] = []
    sets = load_prompt_sets(config)
    encode_ahead(config, sets.training.prompts, sets.heldout.prompts[:3], progress=lambda *words: told.append(words))
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2 * 2 + 3 + 1  # and the negative prompt, empty here
    assert told[-1] == ("encoding prompts", 8, 8)
