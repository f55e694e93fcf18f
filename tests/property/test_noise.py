"""Noise: a function of its key alone, standard normal, and different for every key."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mixgrpo.flow.keyed import keyed_generator
from mixgrpo.flow.noise import Noise

counts = st.integers(0, 10_000)


@given(st.integers(0, 2**62), counts, counts, counts, counts)
def test_noise_depends_on_its_key_and_not_on_what_was_drawn_before(
    seed: int, iteration: int, prompt: int, sample: int, step: int
) -> None:
    noise = Noise(seed, iteration, (3, 2))
    first = (noise.initial(prompt, sample), noise.initial(prompt, None), noise.step(prompt, sample, step))
    torch.manual_seed(seed % 1000)
    torch.rand(7)
    np.random.default_rng().random(5)
    noise.step(prompt + 1, sample, step)
    again = Noise(seed, iteration, (3, 2))
    second = (again.initial(prompt, sample), again.initial(prompt, None), again.step(prompt, sample, step))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_initial_noise_shared_noise_and_step_noise_of_the_same_indices_differ() -> None:
    noise = Noise(seed=3, iteration=14, latent_shape=(2,))
    drawn = [noise.initial(0, 0), noise.initial(0, None), noise.step(0, 0, 0), noise.step(0, 0, 1)]
    assert len({tuple(z.tolist()) for z in drawn}) == len(drawn)


@pytest.mark.parametrize("part", ["seed", "iteration", "prompt", "sample", "step"])
@given(st.tuples(counts, counts, counts, counts, counts), st.integers(1, 2**40))
def test_noise_changes_with_every_part_of_its_key(part: str, key: tuple[int, ...], change: int) -> None:
    names = ["seed", "iteration", "prompt", "sample", "step"]
    values = dict(zip(names, key, strict=True))
    changed = {**values, part: values[part] + change}

    def draw(k: dict[str, int]) -> list[torch.Tensor]:
        noise = Noise(k["seed"], k["iteration"], (4,))
        return [
            noise.step(k["prompt"], k["sample"], k["step"]),
            noise.initial(k["prompt"], k["sample"]),
            noise.initial(k["prompt"], None),
        ]

    before, after = draw(values), draw(changed)
    assert torch.equal(before[0], after[0]) is False
    assert torch.equal(before[1], after[1]) is (part == "step")
    assert torch.equal(before[2], after[2]) is (part in ("step", "sample"))


def test_no_two_of_many_keys_share_their_noise() -> None:
    """Keys next to each other, permuted, and 2^32 apart: a seed folded to 32 bits would collide."""
    near = itertools.product((0, 1, 2**32, 2**32 + 1), (0, 1, 2), (0, 1, 2, 2**32), (0, 1, 2), (0, 1, 2))
    drawn = [Noise(seed, it, (2,)).step(p, s, step) for seed, it, p, s, step in near]
    drawn += [Noise(0, it, (2,)).initial(p, s) for it in range(3) for p in range(3) for s in (None, 0, 1, 2)]
    assert len({tuple(z.tolist()) for z in drawn}) == len(drawn)


def test_all_128_bits_of_the_generators_key_depend_on_what_the_noise_is_for() -> None:
    """A key of 32 bits, as torch's CPU generator has, would repeat itself within a long run."""
    keys = [keyed_generator(0, 0, 0, 0, n).bit_generator.state["state"]["key"] for n in range(64)]
    always_one = np.bitwise_and.reduce(keys)
    ever_one = np.bitwise_or.reduce(keys)
    assert always_one.tolist() == [0, 0]
    assert ever_one.tolist() == [2**64 - 1, 2**64 - 1]


def test_noise_is_standard_normal() -> None:
    noise = Noise(seed=0, iteration=0, latent_shape=(50_000,))
    for z in (noise.initial(0, None), noise.initial(0, 1), noise.step(3, 2, 5)):
        assert stats.kstest(z.numpy(), "norm").pvalue > 0.001
        assert abs(z.mean().item()) < 0.02
        assert abs(z.var().item() - 1) < 0.03


def test_first_numbers_of_many_keys_are_standard_normal_and_uncorrelated() -> None:
    """Across keys, not within one: a poor hash of the key would show here."""
    z = np.array(
        [
            [Noise(1, iteration, (2,)).step(prompt, sample, 0)[0].item() for sample in range(20)]
            for iteration in range(20)
            for prompt in range(10)
        ]
    )
    assert stats.kstest(z.ravel(), "norm").pvalue > 0.001
    between = np.corrcoef(z.T)[np.triu_indices(20, 1)]
    assert np.abs(between).max() < 5 / np.sqrt(200)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_noise_is_float32_on_the_cpu_whatever_the_defaults_are(dtype: torch.dtype) -> None:
    noise = Noise(seed=1, iteration=2, latent_shape=(5,))
    expected = noise.step(0, 0, 0)
    assert expected.dtype == torch.float32
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            drawn = noise.step(0, 0, 0)
    finally:
        torch.set_default_dtype(torch.float32)
    assert drawn.device.type == "cpu"
    assert torch.equal(drawn, expected)


def test_noise_has_the_shape_of_one_latent() -> None:
    noise = Noise(seed=1, iteration=2, latent_shape=(5, 1, 3))
    assert noise.initial(0, None).shape == noise.initial(0, 1).shape == noise.step(0, 1, 2).shape == (5, 1, 3)


def test_starting_noise_of_a_group_has_unit_variance_and_the_stated_correlation() -> None:
    """Members of a group correlate with 1 - spread^2; groups do not correlate at all."""
    noise = Noise(seed=0, iteration=0, latent_shape=(40_000,))
    for spread in (0.1, 0.3, 0.8):
        z = torch.stack([noise.start(prompt, sample, spread) for prompt in (0, 1) for sample in (0, 1, 2)]).double()
        assert z.mean(1).abs().max() < 0.025
        assert (z.var(1) - 1).abs().max() < 0.04
        expected = torch.block_diag(*[torch.full((3, 3), 1.0 - spread**2)] * 2).double().fill_diagonal_(1.0)
        torch.testing.assert_close(torch.corrcoef(z), expected, rtol=0, atol=0.025)
        for one in z:
            assert stats.kstest(one.numpy(), "norm").pvalue > 0.001


@given(counts, counts, st.floats(0.0, 1.0))
def test_starting_noise_is_that_of_the_group_and_the_samples_own(prompt: int, sample: int, spread: float) -> None:
    noise = Noise(seed=1, iteration=2, latent_shape=(3, 2))
    group, own = noise.initial(prompt, None).double(), noise.initial(prompt, sample).double()
    result = noise.start(prompt, sample, spread)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), (1 - spread**2) ** 0.5 * group + spread * own, rtol=1e-6, atol=1e-6)


def test_without_spread_a_group_starts_from_one_noise_and_with_all_of_it_from_independent_ones() -> None:
    noise = Noise(seed=1, iteration=2, latent_shape=(5,))
    for sample in range(3):
        assert torch.equal(noise.start(4, sample, 0.0), noise.initial(4, None))
        assert torch.equal(noise.start(4, sample, 1.0), noise.initial(4, sample))


def test_noise_of_the_forward_process_is_its_own_for_every_sample_and_step() -> None:
    """And none of it was used to draw the sample that it is added to."""
    noise = Noise(seed=3, iteration=1, latent_shape=(2,))
    drawn = [noise.forward(p, s, step) for p in range(3) for s in range(3) for step in range(5)]
    drawn += [noise.step(p, s, step) for p in range(3) for s in range(3) for step in range(5)]
    drawn += [noise.initial(p, s) for p in range(3) for s in (None, 0, 1, 2)]
    drawn += [Noise(3, 2, (2,)).forward(0, 0, 0), Noise(4, 1, (2,)).forward(0, 0, 0)]
    assert len({tuple(z.tolist()) for z in drawn}) == len(drawn)
    assert torch.equal(noise.forward(1, 2, 3), Noise(3, 1, (2,)).forward(1, 2, 3))
    z = Noise(0, 0, (50_000,)).forward(2, 1, 4)
    assert stats.kstest(z.numpy(), "norm").pvalue > 0.001
