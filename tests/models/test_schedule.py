"""The families' schedules against diffusers' own scheduler, with the numbers that the published models come with."""

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from diffusers.pipelines.qwenimage.pipeline_qwenimage import calculate_shift

from mixgrpo.models.schedule import empirical_mu, even_times, pipeline_sigmas, shifted

QWEN = {
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 0.9,
    "base_image_seq_len": 256,
    "max_image_seq_len": 8192,
    "shift_terminal": 0.02,
}
FLUX2 = {"use_dynamic_shifting": True, "shift": 3.0}
Z_IMAGE = {"use_dynamic_shifting": False, "shift": 3.0}


def expected(config: dict[str, object], num_steps: int, mu: float) -> list[float]:
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    times = [1.0 - step / num_steps for step in range(num_steps)]
    scheduler.set_timesteps(num_steps, sigmas=times, mu=mu)
    return scheduler.sigmas.tolist()


@pytest.mark.parametrize("num_steps", [2, 8, 50])
@pytest.mark.parametrize("tokens", [64, 256, 1024, 4096, 8192])
@pytest.mark.parametrize("config", [QWEN, Z_IMAGE, FLUX2 | {"time_shift_type": "linear"}])
def test_a_shift_on_a_line(config: dict[str, object], tokens: int, num_steps: int) -> None:
    numbers = {
        name: config.get(name) for name in ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    }
    mu = calculate_shift(tokens, *(number for number in numbers.values() if number is not None))
    assert pipeline_sigmas(config, num_steps, tokens=tokens) == pytest.approx(expected(config, num_steps, mu), abs=1e-6)


@pytest.mark.parametrize("num_steps", [1, 4, 28, 50, 200])
@pytest.mark.parametrize("tokens", [128, 1024, 4096, 4300, 4301, 16384])
def test_flux2s_shift(tokens: int, num_steps: int) -> None:
    mu = empirical_mu(num_steps, tokens=tokens)
    assert mu == pytest.approx(compute_empirical_mu(tokens, num_steps), rel=1e-9)
    sigmas = shifted(FLUX2, even_times(num_steps), mu=mu)
    assert sigmas == pytest.approx(expected(FLUX2, num_steps, mu), abs=1e-6)


def test_a_single_step_goes_all_the_way_where_the_schedule_is_stretched() -> None:
    assert pipeline_sigmas(QWEN, 1, tokens=1024) == (1.0, 0.0)
