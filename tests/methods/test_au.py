"""AU against an oracle written from the facts about the official code: own sampler, own optimiser, own prompt
layout, one sample at a time, with the same draws.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from palimpsest.methods import _soft_prompt, au
from palimpsest.methods._bank import Bank, Sample
from palimpsest.methods._rounds import Drawer
from palimpsest.methods._training import generator
from palimpsest.methods.contract import Target, ThemeTarget, TrainingData
from palimpsest.params import load, read_yaml
from tests import tiny
from tests.methods.erasing import TARGET, Adam, abar, assert_same_edit

PRESETS = {name: au.Settings(**values) for name, values in read_yaml("methods/au.yaml")["presets"].items()}
SEED = 5


@pytest.fixture(scope="module")
def pipeline():
    """With a text encoder in which tokens change each other: as initialised, they hardly do, and Adam would
    turn the rounding errors of its gradients into whole steps.
    """
    built = tiny.build()
    with torch.no_grad():
        for name, weight in built.text_encoder.encoder.named_parameters():
            if name.endswith("weight") and "norm" not in name:
                weight.mul_(4.0)
    return built


def short(preset, **values):
    """A preset with three short updates, the last two of them attacked, strong enough to be seen."""
    quick = {
        "iterations": 3, "warmup_iterations": 1, "attack_steps": 3, "steps": 3, "retain_batch": 2,
        "learning_rate": 4e-4, "attack_learning_rate": 0.1, "concept_mode": "sample", "prefix_tokens": 2,
    }  # fmt: skip
    return au.Settings(**{**PRESETS[preset].model_dump(), **quick, **values})


def timesteps_of(steps):
    return torch.tensor([1 + k * (1000 // steps) for k in range(steps)][::-1])


def rounds_of(settings, concepts=5, retained=2, vocabulary=None):
    words = len(tiny.tokenizer()) if vocabulary is None else vocabulary
    draw = Drawer(
        settings, concepts, retained, words, timesteps_of(settings.steps), 1000, generator(SEED, "au")
    )
    return draw.rounds()


def padded(pipeline, prompt):
    ids = pipeline.tokenizer(prompt)["input_ids"]
    return ids + [pipeline.tokenizer.eos_token_id] * (77 - len(ids))


class Encoder:
    """The text encoder from its parts, with embeddings instead of ids and a causal mask of its own."""

    def __init__(self, model):
        self.model, self.table = model, model.embeddings.token_embedding.weight

    def __call__(self, vectors):
        states = vectors + self.model.embeddings.position_embedding.weight[None]
        mask = torch.full((77, 77), float("-inf")).triu(1)
        for layer in self.model.encoder.layers:
            attention, residual = layer.self_attn, states
            states = layer.layer_norm1(states)
            q, k, v = (
                getattr(attention, f"{n}_proj")(states).view(len(states), 77, 4, -1).transpose(1, 2)
                for n in "qkv"
            )
            weights = (q @ k.transpose(-1, -2) / np.sqrt(q.shape[-1]) + mask).softmax(-1)
            states = residual + attention.out_proj((weights @ v).transpose(1, 2).reshape(states.shape))
            states = states + layer.mlp(layer.layer_norm2(states))
        return self.model.final_layer_norm(states)

    def plain(self, ids):
        return self(self.table[torch.tensor(ids)][None])

    def prefixed(self, ids, kept, prefix):
        """Start token, prefix, the first `kept` tokens; as many tokens as the prefix has are left out."""
        words = self.table[torch.tensor(ids)]
        count = len(prefix)
        return self(torch.cat([words[:1], prefix, words[1 : 1 + kept], words[1 + kept + count :]])[None])


def latent(unet, cond, empty, sample, settings):
    """DDIM without noise at guidance 3; the official sampler never uses the largest timestep."""
    grid = timesteps_of(settings.steps).tolist()
    grid = grid[1:] if settings.stop_rule == "compvis" else grid
    levels = abar()
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(sample.seed))
    with torch.no_grad():
        for now, after in list(zip(grid, [*grid[1:], 0], strict=True))[: sample.stop]:
            plain, full = (unet(x, torch.tensor([now]), text).sample for text in (empty, cond))
            noise = plain + 3.0 * (full - plain)
            clean = (x - np.sqrt(1 - levels[now]) * noise) / np.sqrt(levels[now])
            x = np.sqrt(levels[after]) * clean + np.sqrt(1 - levels[after]) * noise
    return x


class Oracle:
    """AU one sample at a time; `losses` are those of the erasing updates."""

    def __init__(self, pipeline, settings):
        self.settings, self.unet = settings, pipeline.unet
        self.model = copy.deepcopy(pipeline.text_encoder)
        self.names = [
            n for n, _ in self.model.named_parameters() if n.split(".")[0] in ("encoder", "final_layer_norm")
        ]
        self.own = dict(self.model.named_parameters())
        for name in self.names:
            self.own[name].requires_grad_(True)
        self.student, self.teacher = Encoder(self.model), Encoder(pipeline.text_encoder)
        words = [word for theme in TARGET.themes for word in theme.keywords]
        self.words = words if settings.concept_mode == "sample" else [", ".join(words)]
        self.ids = [padded(pipeline, text) for text in (*self.words, *TARGET.retain)]
        with torch.no_grad():
            self.texts = [self.teacher.plain(ids) for ids in self.ids]
            self.empty = self.teacher.plain(padded(pipeline, ""))
        eos = pipeline.tokenizer.eos_token_id
        official = settings.prefix_layout == "words"
        self.kept = [
            len(word.split()) if official else ids.index(eos) - 1
            for word, ids in zip(self.words, self.ids, strict=False)
        ]
        self.adam, self.losses = Adam(settings.learning_rate), []

    def error(self, sample, text):
        """Squared error of one sample [1, C, h, w] for the student's text."""
        told = torch.tensor([sample.timestep])
        x = latent(self.unet, self.texts[sample.text], self.empty, sample, self.settings)
        with torch.no_grad():
            plain, full = (self.unet(x, told, t).sample for t in (self.empty, self.texts[sample.text]))
        wanted = plain - self.settings.negative_guidance * (full - plain) if sample.erased else full
        return ((self.unet(x, told, text).sample - wanted) ** 2).mean()

    def mean(self, samples, text_of):
        return sum(self.error(sample, text_of(sample)) for sample in samples) / len(samples)

    def concept(self, index, prefix):
        if prefix is None:
            return self.student.plain(self.ids[index])
        return self.student.prefixed(self.ids[index], self.kept[index], prefix)

    def retained(self, sample):
        return self.student.plain(self.ids[sample.text])

    def attack(self, drawn, start):
        adam, prefix, total, stale = Adam(self.settings.attack_learning_rate), start, 0.0, start
        for samples in drawn.attack:
            stale = prefix
            leaf = prefix.clone().requires_grad_()
            loss = self.mean(samples, lambda sample: self.concept(drawn.concept, leaf))  # noqa: B023
            (gradient,) = torch.autograd.grad(loss, [leaf])
            total = gradient + (total if self.settings.accumulate_gradients else 0.0)
            if self.settings.attack == "fast_at":
                total = torch.sign(total)
            prefix = adam.update({"prefix": prefix}, {"prefix": total})["prefix"]
        return stale if self.settings.stale_prefix else prefix

    def update(self, loss):
        self.model.zero_grad()
        loss.backward()
        values = {name: self.own[name].detach() for name in self.names}
        updated = self.adam.update(values, {name: self.own[name].grad for name in self.names})
        for name, value in updated.items():
            self.own[name].data.copy_(value)

    def run(self, rounds):
        prefix = None
        for drawn in rounds:
            if drawn.attack:
                if prefix is None or self.settings.attack_init == "random":
                    prefix = self.student.table[list(drawn.start)].detach()
                prefix = self.attack(drawn, prefix)
            loss = self.mean(drawn.erase, lambda sample: self.concept(sample.text, prefix))  # noqa: B023
            if drawn.beside:
                loss = loss + self.settings.retain_weight * self.mean(drawn.beside, self.retained)
            self.losses.append(loss.item())
            self.update(loss)
            for samples in drawn.retain:
                self.update(self.mean(samples, self.retained))
        return {name: self.own[name].detach() for name in self.names}


@pytest.mark.first_case
@pytest.mark.parametrize(
    ("preset", "values"),
    [
        ("official", {}),
        ("official", {"concept_mode": "joint", "prefix_tokens": 1, "retain_steps": 2}),
        (
            "official",
            {"batch_size": 2, "attack_every": 2, "iterations": 4, "retain_mode": "off", "attack": "fast_at"},
        ),
        ("reg", {"batch_size": 2, "retain_weight": 0.7}),
        ("intended", {}),
    ],
)
def test_matches_the_oracle(pipeline, preset, values):
    settings = short(preset, **values)
    artifact = au.fit(pipeline, TARGET, TrainingData(), settings, SEED)
    oracle = Oracle(pipeline, settings)
    expected = oracle.run(rounds_of(settings, len(oracle.words)))
    assert artifact.meta["losses"] == pytest.approx(oracle.losses, rel=1e-5)
    assert artifact.meta["attacks"] > 0
    base = dict(pipeline.text_encoder.named_parameters())
    assert set(artifact.tensors) == set(expected)
    # A bias of the keys changes no attention: its gradient is rounding error, of which Adam makes whole steps.
    names = [name for name in expected if not name.endswith("k_proj.bias")]
    assert_same_edit(*({name: part[name] for name in names} for part in (artifact.tensors, expected, base)))


def test_trains_layers_and_final_norm_and_nothing_else(pipeline):
    artifact = au.fit(pipeline, TARGET, TrainingData(), short("official", iterations=1), SEED)
    own = dict(pipeline.text_encoder.named_parameters())
    assert set(own) - set(artifact.tensors) == {
        "embeddings.token_embedding.weight", "embeddings.position_embedding.weight"
    }  # fmt: skip
    assert artifact.meta["trained_parameters"] == sum(own[name].numel() for name in artifact.tensors)
    used = au.apply(pipeline, artifact, TARGET, short("official"))
    assert used.unet is pipeline.unet and used.vae is pipeline.vae
    assert not torch.equal(
        used.text_encoder.final_layer_norm.bias, pipeline.text_encoder.final_layer_norm.bias
    )


def test_soft_prompt_equals_hard_tokens_and_is_causal(pipeline):
    encoder, table = pipeline.text_encoder, pipeline.text_encoder.embeddings.token_embedding.weight
    ids = torch.tensor(padded(pipeline, "a red robot with gears"))
    before = encoder(ids[None]).last_hidden_state
    words = ids[1:3].clone()
    laid = torch.cat([ids[:1], torch.zeros(2, dtype=torch.long), ids[3:]])
    with torch.no_grad():
        same = _soft_prompt.encode_prefixed(encoder, laid[None], table[words])
        assert float((same - before).abs().max()) < 1e-6
        other = torch.stack([table[words[0]], table[words[1]].flip(0)])
        changed = _soft_prompt.encode_prefixed(encoder, laid[None], other)[0]
    # Only the second vector changed, so the start token and the first vector keep their states.
    assert torch.equal(changed[:2], same[0, :2])
    assert float((changed[2:] - same[0, 2:]).abs().amax(dim=1).min()) > 1e-6
    assert torch.equal(encoder(ids[None]).last_hidden_state, before)  # the hook is gone


@pytest.mark.parametrize(
    ("text", "layout", "kept", "lost"),
    [
        ("gears", "words", 1, []),  # one word, one token: the end token after it goes
        ("gears", "tokens", 1, []),
        ("big", "words", 1, ["i"]),  # one word of three letters, each a token: its second goes
        ("big", "tokens", 3, []),
        ("gears, crack, static", "words", 3, ["static"]),  # the commas are tokens, but no words
        ("gears, crack, static", "tokens", 5, []),
    ],
)
def test_what_the_prefix_displaces(pipeline, text, layout, kept, lost):
    ids = torch.tensor(padded(pipeline, text))
    target = Target((ThemeTarget("t", (text,), "robot"),), ("a tree",))
    settings = short("official", prefix_layout=layout, prefix_tokens=1)
    assert au.texts_of(pipeline, target, settings)[2] == [kept]
    laid = _soft_prompt.prefix_layout(ids, kept, 1)
    assert len(laid) == 77 and laid[0] == ids[0]
    assert laid[2:].tolist() == ids[1 : 1 + kept].tolist() + ids[2 + kept :].tolist()
    eos = pipeline.tokenizer.eos_token_id
    gone = [i for i in ids[1:76].tolist() if i != eos]
    for i in laid[2:].tolist():
        if i in gone:
            gone.remove(i)
    expected = {"i": ["i"], "static": ["static</w>"]}
    names = pipeline.tokenizer.convert_ids_to_tokens(gone)
    assert names == [] if not lost else len(names) == 1
    assert not lost or names[0] in (*expected[lost[0]], ",</w>", "i</w>")


def test_a_long_text_leaves_room_for_the_prefix():
    ids = torch.arange(77)
    laid = _soft_prompt.prefix_layout(ids, 75, 3)
    assert laid.tolist() == [0, 74, 75, 76, *range(1, 74)]


@pytest.mark.slow
def test_prepared_ahead_or_on_the_fly(pipeline):
    fits = [
        au.fit(pipeline, TARGET, TrainingData(), short("official", **values), SEED).meta
        for values in ({}, {"ahead": 1, "forward_batch": 1}, {"ahead": 7, "forward_batch": 3})
    ]
    for name in ("losses", "retain_losses", "attack_losses"):
        assert len(fits[0][name]) > 1
        for other in fits[1:]:
            assert other[name] == pytest.approx(fits[0][name], rel=2e-5)


def test_at_most_the_asked_number_is_made_ahead(pipeline):
    settings = short("official", ahead=5)
    made = []

    class Counting(Bank):
        def prepare(self, samples):
            made.append(len(samples))
            return super().prepare(samples)

    bank = bank_of(pipeline, settings, Counting)
    batches = [[Sample(0, 1, 5, seed)] * size for seed, size in enumerate((3, 1, 1, 2, 4, 1))]
    got = [len(batch.latents) for batch in bank.stream(batches, 5)]
    assert got == [3, 1, 1, 2, 4, 1]
    assert made == [5, 6, 1]


def bank_of(pipeline, settings, kind=Bank):
    from palimpsest.methods._stops import schedule
    from palimpsest.sampling.embeddings import encode

    scheduler, sampler = schedule(pipeline, settings)
    texts = encode(pipeline, ["gears", "a tree"])
    frozen = replace(pipeline, scheduler=scheduler)
    return kind(frozen, sampler, settings, texts, encode(pipeline, [""]), 1.5, "float32")


@pytest.mark.first_case
@pytest.mark.parametrize("preset", ["official", "intended"])
def test_latents_and_targets(pipeline, preset):
    settings = short(preset, steps=20, negative_guidance=1.5)
    bank = bank_of(pipeline, settings)
    samples = [Sample(0, 3, 700, 1, True), Sample(1, 0, 961, 2), Sample(0, 15, 180, 3)]
    batch = bank.prepare(samples)
    for row, sample in enumerate(samples):
        cond = bank.texts[sample.text][None]
        expected = latent(pipeline.unet, cond, bank.empty, sample, settings)
        assert float((batch.latents[row] - expected[0]).abs().max()) < 1e-5 * float(expected.abs().max())
        with torch.no_grad():
            told = torch.tensor([sample.timestep])
            full, plain = (pipeline.unet(expected, told, text).sample for text in (cond, bank.empty))
        wanted = plain - 1.5 * (full - plain) if sample.erased else full
        assert float((batch.targets[row] - wanted[0]).abs().max()) < 1e-5 * float(wanted.abs().max())


def test_draws_of_the_official_recipe():
    settings = PRESETS["official"]
    rounds = rounds_of(settings, concepts=1, retained=12)
    assert [len(drawn.attack) for drawn in rounds[:201:200]] == [0, 30]
    samples = sum(len(batch) for drawn in rounds for batch in drawn.batches)
    assert samples == 800 * 30 + 1000 + 5 * 1000
    for drawn in rounds:
        (retained,) = drawn.retain
        assert len({(s.stop, s.timestep) for s in retained}) == 1  # one timestep for the batch
        assert len({s.text for s in retained}) == len({s.seed for s in retained}) == 5
        assert all(s.timestep // 20 == (50 - s.stop if s.stop < 49 else s.timestep // 20) for s in retained)
    # Two batches of five without a repeat, then a new shuffle.
    seen = [{s.text for s in drawn.retain[0]} for drawn in rounds[:4]]
    assert not seen[0] & seen[1] and not seen[2] & seen[3]
    assert {s.stop for drawn in rounds for s in drawn.erase} == set(range(1, 50))


def test_reg_shares_the_timesteps_of_the_erasing_update():
    for drawn in rounds_of(PRESETS["reg"].model_copy(update={"iterations": 5}), concepts=1, retained=12):
        assert not drawn.retain
        assert {(s.stop, s.timestep) for s in drawn.beside} == {(s.stop, s.timestep) for s in drawn.erase}
        assert not {s.seed for s in drawn.beside} & {s.seed for s in drawn.erase}


def test_equal_seeds_give_equal_weights(pipeline):
    first, again, other = (
        au.fit(pipeline, TARGET, TrainingData(), short("reg", iterations=2), seed).tensors
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert max(float((first[name] - other[name]).abs().max()) for name in first) > 1e-4


@pytest.mark.first_case
@pytest.mark.parametrize("preset", PRESETS)
def test_evaluations_are_counted(pipeline, preset):
    seen = []
    handle = pipeline.unet.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    artifact = au.fit(pipeline, TARGET, TrainingData(), short(preset, start_guidance=2.0), SEED)
    handle.remove()
    assert artifact.meta["unet_evaluations"] == sum(seen)


def test_the_base_stays_as_it_is(pipeline):
    before = {n: p.clone() for n, p in pipeline.text_encoder.state_dict().items()}
    au.fit(pipeline, TARGET, TrainingData(), short("official", iterations=2), SEED)
    assert all(torch.equal(value, before[n]) for n, value in pipeline.text_encoder.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in pipeline.unet.parameters())
    assert not pipeline.text_encoder.get_input_embeddings()._forward_hooks


@pytest.mark.first_case
@pytest.mark.parametrize("kind", ["pgd", "fast_at"])
def test_an_attack_undoes_some_of_an_erasure(pipeline, kind):
    settings = short("intended", attack=kind, attack_learning_rate=0.03)
    shifted = {
        name: value + 0.3 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
        for name, value in pipeline.text_encoder.named_parameters()
        if name.startswith("final_layer_norm")
    }
    student = pipeline.with_weights("text_encoder", shifted).text_encoder
    ids = torch.tensor([padded(pipeline, "gears")])
    job = au._Job(settings, bank_of(pipeline, settings), student, ids, [1])
    batch = job.bank.prepare([Sample(0, 1, 781, seed) for seed in range(4)])
    start = student.get_input_embeddings().weight[[300, 310]]
    found, last = au.attack(job, 0, start, iter([batch] * 40), 40)

    def loss(prefix):
        with torch.no_grad():
            return float((job.predict(batch, job.concept_text(0, prefix)) - batch.targets).square().mean())

    assert loss(found) < 0.8 * loss(start)
    assert last == pytest.approx(loss(found), rel=0.2)


def test_training_lowers_the_loss(pipeline):
    settings = short(
        "official", concept_mode="joint", iterations=10, warmup_iterations=99, batch_size=4, retain_mode="off"
    )
    losses = au.fit(pipeline, TARGET, TrainingData(), settings, SEED).meta["losses"]
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:2])


def test_strength_mixes_base_and_edit(pipeline):
    settings = short("official", iterations=1)
    artifact = au.fit(pipeline, TARGET, TrainingData(), settings, SEED)
    assert au.apply(pipeline, artifact, TARGET, settings.model_copy(update={"strength": 0.0})) is pipeline
    half = au.apply(pipeline, artifact, TARGET, settings.model_copy(update={"strength": 0.5}))
    mixed = half.text_encoder.state_dict()
    for name, base in pipeline.text_encoder.state_dict().items():
        assert torch.allclose(mixed[name], (base + artifact.tensors.get(name, base)) / 2, atol=1e-6)


def test_what_cannot_be_fitted(pipeline):
    settings = short("official")
    without = Target(TARGET.themes)
    with pytest.raises(ValueError, match=r"retain_mode 'iter' needs benign prompts.*params\.yaml"):
        au.fit(pipeline, without, TrainingData(), settings, SEED)
    off = short("official", retain_mode="off", iterations=1)
    assert au.fit(pipeline, without, TrainingData(), off, SEED).meta["retain_losses"] == []
    empty = Target((ThemeTarget("t", ("gears", " "), "robot"),), TARGET.retain)
    with pytest.raises(ValueError, match="' ' has no tokens"):
        au.fit(pipeline, empty, TrainingData(), settings, SEED)
    with pytest.raises(ValidationError, match="must be 'ddim'"):
        au.Settings(scheduler="pndm")
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        au.fit(pipeline, TARGET, TrainingData(), short("official", learning_rate=1e30, iterations=20), SEED)


def test_no_prompt_of_a_suite_is_retained():
    params = load("params.yaml")
    assert len(params.retain) == len(set(params.retain)) == 12
    words = [word for theme in params.themes.values() for word in theme.detailed]
    assert not [text for text in params.retain for word in words if word in text]
    for suite in params.suites.values():
        for source in suite.sources.values():
            with open(source.path, encoding="utf-8") as lines:
                assert not [line for line in lines for text in params.retain if f",{text}," in line]
