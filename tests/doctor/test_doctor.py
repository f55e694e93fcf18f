"""Every check finds what it is there for, and says what to do."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx2
import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from mixgrpo.cli import main
from mixgrpo.config.load import dump_resolved, load_config
from mixgrpo.config.schema import Config
from mixgrpo.doctor.access import check_model
from mixgrpo.doctor.parts import loaded_files
from mixgrpo.doctor.rewards import check_rewards
from mixgrpo.doctor.sampling import check_sampling
from mixgrpo.models import load_model
from mixgrpo.models.pipeline import PipelineModel

HUB_MODEL = "somebody/a-model"


INDEX = {
    "_class_name": "FluxPipeline",
    "_diffusers_version": "0.42.1",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "image_encoder": [None, None],
}
FILES = {
    "model_index.json": 500,
    "README.md": 3_000,
    "scheduler/scheduler_config.json": 700,
    "text_encoder/config.json": 800,
    "text_encoder/model.safetensors": 250_000_000,
    "text_encoder/model.fp16.safetensors": 125_000_000,
    "text_encoder/pytorch_model.bin": 250_000_000,
    "text_encoder/flax_model.msgpack": 250_000_000,
    "tokenizer/vocab.json": 1_000_000,
    "tokenizer/merges.txt": 500_000,
    "transformer/config.json": 900,
    "transformer/diffusion_pytorch_model.safetensors.index.json": 20_000,
    "transformer/diffusion_pytorch_model-00001-of-00002.safetensors": 1_500_000_000,
    "transformer/diffusion_pytorch_model-00002-of-00002.safetensors": 500_000_000,
    "transformer/diffusion_pytorch_model.fp16-00001-of-00001.safetensors": 1_000_000_000,
    "transformer/diffusion_pytorch_model.safetensors.index.fp16.json": 20_000,
    "transformer/diffusion_pytorch_model.bin": 2_000_000_000,
    "vae/config.json": 800,
    "vae/diffusion_pytorch_model.safetensors": 80_000_000,
    "image_encoder/model.safetensors": 600_000_000,
    "safety_checker/model.safetensors": 1_200_000_000,
    "all_in_one.safetensors": 9_000_000_000,
}
"""A repository as there are many, with what diffusers does not load: variants, pickles, parts that it does not name."""
NEEDED = 2_331_523_200
"""Bytes of what it loads, added up by hand, without the index."""


class Hub:
    """Answers as the hub does."""

    def __init__(self, folder: Path, fault: Exception | None = None, without: tuple[str, ...] = ()) -> None:
        self._folder, self._fault = folder, fault
        self._files = {name: size for name, size in FILES.items() if name not in without}

    def auth_check(self, repo: str) -> None:
        assert repo == HUB_MODEL
        if self._fault is not None:
            raise self._fault

    def model_info(self, repo: str, *, revision: str | None, files_metadata: bool) -> Any:
        assert files_metadata
        files = self._files.items()
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name, size=size) for name, size in files])

    def hf_hub_download(self, repo: str, name: str, *, revision: str | None) -> str:
        assert name == "model_index.json", "nothing else is downloaded"
        (self._folder / name).write_text(json.dumps(INDEX))
        return str(self._folder / name)


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The place of a model in an empty cache of the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / f"models--{HUB_MODEL.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    return folder / "snapshots" / "abc"


def put(folder: Path, *names: str) -> None:
    shards = [name.removeprefix("transformer/") for name in FILES if re.search(r"model-0000\d-of", name)]
    weights = {f"layer{number}": shard for number, shard in enumerate(shards)}
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        whole = {"model_index.json": INDEX, "diffusion_pytorch_model.safetensors.index.json": {"weight_map": weights}}
        file.write_text(json.dumps(whole.get(file.name, "x")))


def refusal(kind: type[Exception], status: int) -> Exception:
    response = httpx2.Response(status, request=httpx2.Request("GET", "https://hub.test"))
    return kind("refused", response=response)  # pyright: ignore[reportCallIssue]


def on_hub(**model: Any) -> Any:
    return load_config("flux-nano").model.model_copy(update={"path": HUB_MODEL, **model})


def test_a_model_on_the_hub_that_is_open_says_how_much_diffusers_downloads(cache: Path, tmp_path: Path) -> None:
    finding, download = check_model(on_hub(), cast(HfApi, Hub(tmp_path)))
    assert (finding.state, download) == ("ok", NEEDED)
    assert "2.33 GB to download" in finding.text


def test_what_is_counted_is_what_diffusers_allows_and_does_not_ignore(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own choice from the same list of files."""
    from diffusers.pipelines.pipeline_loading_utils import variant_compatible_siblings

    weights, _ = cast(Any, variant_compatible_siblings)(
        set(FILES), ignore_patterns=["*.bin", "*.msgpack", "*.onnx", "*.pb"]
    )
    parts = {name for name, part in INDEX.items() if isinstance(part, list) and part[0]}
    with_weights = {Path(name).parent.name for name in weights} & parts
    theirs = {
        name
        for name in FILES
        if (part := Path(name).parent.name) in parts
        and (part not in with_weights or name in weights or name == f"{part}/config.json")
    }
    assert set(loaded_files(INDEX, FILES)) == theirs
    assert sum(FILES[name] for name in theirs) == NEEDED


def test_a_model_is_in_the_cache_when_all_its_parts_are(cache: Path, tmp_path: Path) -> None:
    nobody = cast(HfApi, Hub(tmp_path, AssertionError("there is nothing to ask")))
    needed = loaded_files(INDEX, FILES)
    put(cache, "model_index.json", *needed)
    finding, download = check_model(on_hub(), nobody)
    assert (finding.state, download) == ("ok", 0)
    assert "is in the hub's cache" in finding.text
    for name in ("transformer/diffusion_pytorch_model-00002-of-00002.safetensors", "tokenizer/merges.txt"):
        (cache / name).unlink()
    finding, download = check_model(on_hub(), cast(HfApi, Hub(tmp_path)))
    assert (finding.state, download) == ("ok", 500_500_000)
    assert finding.text.endswith("500 MB to download, for transformer")
    offline = cast(HfApi, Hub(tmp_path, httpx2.ConnectError("no route")))
    finding, _ = check_model(on_hub(), offline)
    assert finding.state == "problem"
    assert "or not whole" in finding.text


def test_the_index_alone_is_not_the_model(cache: Path, tmp_path: Path) -> None:
    put(cache, "model_index.json")
    finding, download = check_model(on_hub(), cast(HfApi, Hub(tmp_path)))
    assert (finding.state, download) == ("ok", NEEDED)
    assert finding.text.endswith("for scheduler, text_encoder, tokenizer, transformer, vae")
    finding, _ = check_model(on_hub(path=str(cache)))
    assert finding.state == "problem"
    assert "no safetensors, or not all, for scheduler, text_encoder" in finding.text


def test_a_repository_of_pickles_is_a_problem(cache: Path, tmp_path: Path) -> None:
    hub = Hub(tmp_path, without=("vae/diffusion_pytorch_model.safetensors",))
    finding, download = check_model(on_hub(), cast(HfApi, hub))
    assert (finding.state, download) == ("problem", 0)
    assert f"{HUB_MODEL} on the hub has no safetensors for vae" in finding.text
    finding, _ = check_model(on_hub(), cast(HfApi, Hub(tmp_path, without=("model_index.json",))))
    assert "has no model_index.json" in finding.text


@pytest.mark.parametrize(
    ("fault", "text", "remedy"),
    [
        (refusal(GatedRepoError, 403), "gated and this account has no access", "accept the licence on .*hf auth login"),
        (refusal(RepositoryNotFoundError, 404), f"the hub has no {HUB_MODEL}", "a private model needs a token"),
        (refusal(RevisionNotFoundError, 404), "no revision 'v9'", HUB_MODEL),
        (httpx2.ConnectError("no route"), "the hub does not answer: no route", "give its folder as model.path"),
    ],
)
def test_why_a_model_on_the_hub_cannot_be_had(
    fault: Exception, text: str, remedy: str, cache: Path, tmp_path: Path
) -> None:
    finding, download = check_model(on_hub(revision="v9"), cast(HfApi, Hub(tmp_path, fault)))
    assert (finding.state, download) == ("problem", 0)
    assert text in finding.text
    assert re.search(remedy, finding.remedy)


def test_a_folder_that_is_no_model_is_a_problem(tmp_path: Path) -> None:
    finding, _ = check_model(on_hub(path=str(tmp_path)))
    assert finding.state == "problem"
    assert "no model_index.json" in finding.text or "a folder with a model_index.json" in finding.text


def test_rewards_are_made_and_asked(make_config: Callable[..., Config]) -> None:
    rewards = [
        {"name": "brightness"},
        {"name": "colors"},
        {"name": "gone", "use": "no_such_module:make"},
    ]
    bright, colors, gone = check_rewards(make_config(rewards=rewards), ["a picture", "another"])
    assert bright.state == "ok"
    assert "2 pictures of noise" in bright.text
    # A prompt that asks for no colours is nothing to score by.
    assert colors.state == "problem"
    assert "2 of 2 pictures of noise got no score" in colors.text
    assert gone.state == "problem"
    assert "no_such_module" in gone.text


def test_sampling_is_compared_with_diffusers(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    finding = check_sampling(make_config(), "a picture")
    assert finding.state == "ok", finding.text
    right = PipelineModel.sigmas
    monkeypatch.setattr(PipelineModel, "sigmas", lambda self, steps: (1.0, 0.99, *right(self, steps)[2:]))
    finding = check_sampling(make_config(), "a picture")
    assert finding.state == "problem"
    assert "differ by" in finding.text


@pytest.mark.parametrize(
    ("dtype", "share", "difference", "state"),
    [
        ("float32", 0.005, 0.9, "ok"),  # pixels on an edge
        ("bfloat16", 0.005, 0.9, "ok"),
        ("float32", 1.0, 5e-3, "problem"),
        ("bfloat16", 1.0, 5e-3, "ok"),
        ("bfloat16", 0.03, 0.2, "problem"),
        ("float32", 0.03, 0.2, "problem"),
    ],
)
def test_some_pixels_of_an_edge_may_differ_but_not_a_part_of_the_picture(
    dtype: str,
    share: float,
    difference: float,
    state: str,
    make_config: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours = torch.zeros(1000)
    theirs = torch.where(torch.arange(1000) < 1000 * share, difference, 0.0)
    monkeypatch.setattr("mixgrpo.doctor.sampling.draw_both_ways", lambda *_, **__: (ours, theirs))
    config = make_config(lora={"rank": 2}, model={"dtype": dtype})
    assert check_sampling(config, "a picture").state == state


FULL = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.25 GiB. GPU 0 has a total capacity of 23.50 GiB of which 1.00 GiB is "
    "free. Process 7 has 22.50 GiB memory in use. Of the allocated memory 21 GiB is allocated by PyTorch."
)
FULL_IN_SHORT = "Tried to allocate 2.25 GiB. GPU 0 has a total capacity of 23.50 GiB of which 1.00 GiB is free."


def make_heavy() -> Any:
    """A reward whose network does not fit."""
    raise FULL


def make_hungry() -> Any:
    """A reward that does not fit when it scores."""

    def score(images: torch.Tensor, prompts: Any) -> torch.Tensor:
        raise FULL

    return score


def test_memory_that_runs_out_is_a_problem_that_says_what_to_do(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    rewards = [{"name": name, "use": f"{__name__}:make_{name}"} for name in ("heavy", "hungry")]
    for finding in check_rewards(make_config(rewards=rewards), ["a picture"]):
        assert finding.state == "problem"
        assert "Tried to allocate 2.25 GiB" in finding.text
        assert "offload = true" in finding.remedy

    def full(*_: Any, **__: Any) -> Any:
        raise FULL

    monkeypatch.setattr(PipelineModel, "decode", full)
    finding = check_sampling(make_config(lora={"rank": 2}), "a picture")
    assert finding.state == "problem"
    assert finding.text.endswith(FULL_IN_SHORT)
    assert "--model.quantize int8" in finding.remedy
    assert "--model.offload" in finding.remedy
    assert "micro-batch" not in finding.remedy, "one picture is drawn"
    wrong = RuntimeError("shapes do not fit")
    monkeypatch.setattr(PipelineModel, "decode", lambda *_: (_ for _ in ()).throw(wrong))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        check_sampling(make_config(), "a picture")


def test_the_weights_are_quantised_for_the_comparison_as_for_the_run(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def load(path: str, **options: Any) -> Any:
        asked.append(dict(options))
        options["quantize"] = "off"  # the libraries for it are not in dev
        return load_model(path, **options)

    monkeypatch.setattr("mixgrpo.doctor.sampling.load_model", load)
    config = make_config(lora={"rank": 2}, model={"quantize": "int8", "prompt_cache": "somewhere"})
    assert check_sampling(config, "a picture").state == "ok"
    assert [(options["quantize"], "prompt_cache" in options) for options in asked] == [("int8", False)]


def test_the_command_ends_with_1_if_a_run_would_fail(
    make_config: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    dump_resolved(make_config(), good)
    dump_resolved(make_config(rewards=[{"name": "gone", "use": "no_such_module:make"}]), bad)
    assert main(["doctor", str(good)]) == 0
    out = capsys.readouterr().out
    assert "sampling: our loop and diffusers' pipeline differ by" in out.replace("\n        ", " ")
    assert "Ready: " in out
    assert main(["doctor", str(bad), "--quick"]) == 1
    out = capsys.readouterr().out
    assert "1 problem: the run would fail" in out
    assert "sampling" not in out
