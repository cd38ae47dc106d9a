"""Seeds and noise of images."""

from __future__ import annotations

import pytest
import torch

from palimpsest.sampling.noise import image_seed, initial_noise


def test_seeds_are_fixed_for_ever():
    # Stored images can only be compared with later ones while these numbers stay.
    assert image_seed(0, "nsfw", 0, 0) == 3423431148
    assert 0 <= image_seed(2**32 - 1, "ring_a_bell/uncased", 10**9, 99) < 2**32


def test_every_argument_counts():
    seeds = {
        image_seed(*a)
        for a in [(0, "a", 1, 1), (1, "a", 1, 1), (0, "b", 1, 1), (0, "a", 2, 1), (0, "a", 1, 2)]
    }
    assert len(seeds) == 5
    assert image_seed(0, "a", 1, 11) != image_seed(0, "a", 11, 1)


def test_noise_is_that_of_the_global_cpu_generator():
    given = initial_noise(7, (4, 8, 8))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        assert torch.equal(given[None], torch.randn(1, 4, 8, 8))


def test_noise_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    initial_noise(3, (4, 8, 8))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_impossible_seeds_are_refused(seed):
    with pytest.raises(ValueError, match=str(seed)):
        initial_noise(seed, (4, 8, 8))
