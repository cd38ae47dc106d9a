"""The draws of AdvUnlearn: concepts, prefixes, latents and retained prompts of every update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from palimpsest.methods._bank import Sample
from palimpsest.methods._stops import stops_and_timesteps

if TYPE_CHECKING:
    from palimpsest.methods.au import Settings


@dataclass(frozen=True)
class Round:
    """Everything random of one erasing update.

    concept: index of the concept. start: token ids of a random prefix. attack: samples of each attack step,
    none when there is no attack. erase: samples of the update; beside: retained ones in the same update
    (reg). retain: samples of each retaining update after it (iter).
    """

    concept: int
    start: tuple[int, ...]
    attack: tuple[tuple[Sample, ...], ...]
    erase: tuple[Sample, ...]
    beside: tuple[Sample, ...]
    retain: tuple[tuple[Sample, ...], ...]

    @property
    def batches(self) -> list[tuple[Sample, ...]]:
        """The samples in the order of their use, as they are evaluated together."""
        return [*self.attack, self.erase + self.beside, *self.retain]


@dataclass
class Drawer:
    """Draws rounds. concepts, retained, vocabulary: how many there are. timesteps: of the schedule;
    train_timesteps: how many the model was trained on (1000). Retained text r has index concepts + r.
    """

    settings: Settings
    concepts: int
    retained: int
    vocabulary: int
    timesteps: Tensor
    train_timesteps: int
    generator: torch.Generator
    _unseen: list[int] = field(default_factory=list)

    def whole(self, high: int, count: int) -> list[int]:
        return torch.randint(high, (count,), generator=self.generator).tolist()

    def levels(self, count: int) -> list[tuple[int, int]]:
        """(stop, timestep), `count` times."""
        place = torch.tensor(self.whole(self.settings.steps, count))
        drawn = stops_and_timesteps(
            place, self.settings, self.timesteps, self.train_timesteps, self.generator
        )
        return list(zip(*(part.tolist() for part in drawn), strict=True))

    def samples(
        self, texts: Sequence[int], levels: Sequence[tuple[int, int]], erased: bool = False
    ) -> tuple[Sample, ...]:
        seeds = self.whole(2**62, len(texts))
        drawn = zip(texts, levels, seeds, strict=True)
        return tuple(Sample(text, *level, seed, erased) for text, level, seed in drawn)

    def retained_texts(self) -> list[int]:
        """The next retained texts; all are shuffled anew when fewer than a batch are left."""
        count = min(self.settings.retain_batch, self.retained)
        if len(self._unseen) < count:
            self._unseen = torch.randperm(self.retained, generator=self.generator).tolist()
        batch, self._unseen = self._unseen[:count], self._unseen[count:]
        return [self.concepts + index for index in batch]

    def attack_samples(self, concept: int) -> list[tuple[Sample, ...]]:
        """The samples of each step of one attack."""
        size, count = self.settings.batch_size, self.settings.batch_size * self.settings.attack_steps
        drawn = self.samples([concept] * count, self.levels(count))
        return [drawn[start : start + size] for start in range(0, count, size)]

    def rounds(self) -> list[Round]:
        """The draws of all updates."""
        settings, found, concept = self.settings, [], 0
        for update in range(settings.iterations):
            start: list[int] = []
            attack: list[tuple[Sample, ...]] = []
            if update % settings.attack_every == 0:
                (concept,) = self.whole(self.concepts, 1)
                if update >= settings.warmup_iterations:
                    start = self.whole(self.vocabulary, settings.prefix_tokens)
                    attack = self.attack_samples(concept)
            levels = self.levels(settings.batch_size)
            erase = self.samples([concept] * settings.batch_size, levels, erased=True)
            beside: tuple[Sample, ...] = ()
            retain: list[tuple[Sample, ...]] = []
            if settings.retain_mode == "reg":
                texts = self.retained_texts()
                beside = self.samples(texts, [levels[row % len(levels)] for row in range(len(texts))])
            elif settings.retain_mode == "iter":
                for _ in range(settings.retain_steps):
                    texts = self.retained_texts()
                    retain.append(self.samples(texts, self.levels(1) * len(texts)))
            found.append(Round(concept, tuple(start), tuple(attack), erase, beside, tuple(retain)))
        return found
