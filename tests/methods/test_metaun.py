"""Meta-Unlearning against an oracle that relearns on a copy of the UNet, with latents made image by image, its own
sampler and optimisers, and the recorded draws.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import replace

import pytest
import torch

from palimpsest.methods import _relearning, esd, metaun
from palimpsest.methods._training import generator, trainable_copy
from palimpsest.methods.contract import Target, TrainingData
from palimpsest.params import read_yaml
from tests import tiny
from tests.methods.erasing import TARGET, Adam, assert_same_edit, clipped, ddim, error_of_change
from tests.methods.relabelling import Formulas, gradient, image_sets

PRESETS = {
    name: metaun.Settings(**values) for name, values in read_yaml("methods/metaun.yaml")["presets"].items()
}
SEED = 4
WORDS = [word for theme in TARGET.themes for word in theme.keywords]
# Rows of `image_sets` (all of one theme, then all of the other) in the order in which the themes take turns.
HARM, SAFE = [0, 4, 1, 5, 2, 6, 3], [0, 3, 1, 4, 2]


@pytest.fixture(scope="module")
def pipeline():
    return tiny.build()


def short(preset, **values):
    """A preset with a few updates, in small steps: Adam makes a whole step of a rounding error."""
    quick = {"iterations": 3, "concepts_per_update": 2, "steps": 6, "batch_size": 2, "learning_rate": 1e-5}
    return metaun.Settings(**{**PRESETS[preset].model_dump(), **quick, **values})


def fit(pipeline, settings, seed=SEED, data=None):
    return metaun.fit(pipeline, TARGET, data or image_sets(), settings, seed)


def material(pipeline, settings):
    return _relearning.material(pipeline, TARGET, image_sets(), settings)


def rounds_of(pipeline, settings):
    return _relearning.draw_rounds(material(pipeline, settings), settings, generator(SEED, "metaun"))


def draws_of(settings):
    concepts = 1 if settings.concept_mode == "joint" else len(WORDS)
    return esd.draw(metaun.erasing(settings), concepts, torch.zeros(0), 1000, generator(SEED, "esd"))


def names_of(unet, settings):
    mark = {"full": "", "xattn": ".attn2."}[settings.parameters]
    return [name for name, _ in unet.named_parameters() if mark in name]


class Oracle:
    """One update after the other, on copies of the UNet."""

    def __init__(self, pipeline, settings):
        self.settings, self.pipeline, self.formulas = settings, pipeline, Formulas(pipeline)
        self.formulas.text = functools.cache(self.formulas.text)
        self.student = copy.deepcopy(pipeline.unet).requires_grad_(True)

    def erasing(self, draws, update):
        """L_erase of one update, sample by sample."""
        settings, student, frozen = self.settings, self.student, self.pipeline.unet
        words = [TARGET.text] if settings.concept_mode == "joint" else WORDS
        grid = [1 + k * (1000 // settings.steps) for k in range(settings.steps)][::-1]
        pairs = list(zip(grid, [*grid[1:], 0], strict=True))
        empty, total = self.formulas.text(""), 0.0
        for row in range(settings.concepts_per_update):
            concept = self.formulas.text(words[int(draws.concepts[update, row])])
            seeded = torch.Generator().manual_seed(int(draws.seeds[update, row]))
            sampler = student if settings.variant == "esd" else frozen
            stops, told = int(draws.stops[update, row]), draws.timesteps[update, row][None]
            noise = torch.randn(1, 4, 8, 8, generator=seeded)
            latents = ddim(sampler, noise, concept, empty, pairs[:stops], settings.start_guidance)
            with torch.no_grad():
                if settings.variant == "esd":
                    plain, full = (frozen(latents, told, text).sample for text in (empty, concept))
                    wanted = plain - settings.negative_guidance * (full - plain)
                else:
                    wanted = student(latents, told, empty).sample
            error = (student(latents, told, concept).sample - wanted) ** 2
            total = total + error.mean() / settings.concepts_per_update
        return total

    def denoising(self, unet, part, batch):
        """The mean denoising loss of a batch of harmful or of safe images."""
        forms, shown, texts, wanted = self.formulas, [], [], []
        order, role = (HARM, "target_images") if part == "harm" else (SAFE, "safe_images")
        prompts = forms.bad if part == "harm" else forms.own
        drawn = zip(batch.rows.tolist(), batch.timesteps.tolist(), batch.seeds.tolist(), strict=True)
        for row, time, seed in drawn:
            first, noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
            latents = forms.latents(role, order[row], first)
            shown.append(forms.noised(latents, noise, time))
            texts.append(forms.text(prompts[order[row]]))
            wanted.append(forms.asked(latents, noise, time))
        predicted = unet(torch.cat(shown), batch.timesteps, torch.cat(texts)).sample
        return ((predicted - torch.cat(wanted)) ** 2).mean()

    def passes(self, unet, names, terms, weights):
        """Gradient of the weighted sum of the losses of some passes, and the losses of each part."""
        losses, total = {part: [] for part in weights}, torch.zeros(())
        for term in terms:
            loss = self.denoising(unet, term.part, term.batch)
            losses[term.part].append(loss.item())
            total = total + weights[term.part] * loss
        return gradient(unet, names, total), losses

    def relearned(self, batches):
        """A copy after one AdamW step per batch of harmful images, all parameters moving."""
        unet, settings = copy.deepcopy(self.student), self.settings
        own = dict(unet.named_parameters())
        adam = Adam(settings.learning_rate, settings.weight_decay)
        for batch in batches:
            slopes = gradient(unet, list(own), self.denoising(unet, "harm", batch))
            values = {name: value.detach() for name, value in own.items()}
            for name, value in adam.update(values, clipped(slopes, settings.max_grad_norm)).items():
                own[name].data.copy_(value)
        return unet

    def run(self, draws, rounds):
        """Losses of erasing, losses on harmful images after relearning, and weights."""
        s, student, losses, harm = self.settings, self.student, [], []
        names, own = names_of(student, s), dict(student.named_parameters())
        adam = Adam(s.learning_rate, s.weight_decay)
        for update, drawn in enumerate(rounds):
            loss = self.erasing(draws, update)
            losses.append(loss.item())
            slopes = gradient(student, names, loss)
            keep = {"unrelated": s.gamma1_1, "related": s.gamma1_2}
            lose = {"harm": -s.gamma2_1, "related": -s.gamma2_2, "unrelated": -s.gamma2_3}
            before, _ = self.passes(student, names, drawn.before, keep)
            after, seen = self.passes(self.relearned(drawn.relearning), names, drawn.after, lose)
            harm.append(sum(seen["harm"]) / len(seen["harm"]))
            slopes = clipped({n: slopes[n] + before[n] + after[n] for n in names}, s.max_grad_norm)
            for name, value in adam.update({n: own[n].detach() for n in names}, slopes).items():
                own[name].data.copy_(value)
        return losses, harm, {name: own[name].detach() for name in names}


FEW = {"iterations": 2, "images_per_set": 2}
CASES = {
    "official": short("official"),
    "official_sdd": short("official_sdd", **FEW),
    "intended": short("intended", **FEW, max_grad_norm=0.05),
    "intended_sdd": short("intended_sdd", **FEW),
    "fixed_timesteps": short("fixed_timesteps", iterations=2, images_per_set=1, batch_size=10),
    "cross-attention": short("intended", **FEW, parameters="xattn", concept_mode="joint", weight_decay=0.1),
}


def test_every_preset_is_compared():
    assert set(PRESETS) <= set(CASES)


@pytest.mark.first_case
@pytest.mark.parametrize("case", CASES)
def test_losses_and_weights_match_the_oracle(pipeline, case):
    settings = CASES[case]
    before = {n: t.clone() for n, t in pipeline.unet.state_dict().items()}
    artifact = fit(pipeline, settings)
    losses, harm, weights = Oracle(pipeline, settings).run(draws_of(settings), rounds_of(pipeline, settings))
    assert artifact.meta["losses"] == pytest.approx(losses, rel=1e-5)
    assert artifact.meta["harm_losses"] == pytest.approx(harm, rel=1e-5)
    assert list(artifact.tensors) == names_of(pipeline.unet, settings)
    assert_same_edit(artifact.tensors, weights, before)
    assert all(torch.equal(before[n], t) for n, t in pipeline.unet.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in pipeline.unet.parameters())
    edited = metaun.apply(pipeline, artifact, TARGET, settings).unet.state_dict()
    assert all(torch.equal(edited[n], artifact.tensors.get(n, t)) for n, t in before.items())


def student_of(pipeline):
    return trainable_copy(pipeline.unet, [name for name, _ in pipeline.unet.named_parameters()])


@pytest.mark.first_case
@pytest.mark.parametrize("parameters", ["full", "xattn"])
def test_gradients_are_those_at_the_relearned_weights(pipeline, parameters):
    # Steps large enough that gradients at the weights as they were would be far off.
    settings = short("intended", learning_rate=3e-3, weight_decay=0.1, parameters=parameters)
    found, drawn = material(pipeline, settings), rounds_of(pipeline, settings)[0]
    oracle, student, names = Oracle(pipeline, settings), student_of(pipeline), None
    names = names_of(student, settings)
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name in names)
    own, started = dict(student.named_parameters()), {}
    for name in names:
        own[name].grad = started[name] = torch.full_like(own[name], 0.5)
    with _relearning.relearned(student, found, drawn.relearning, settings, 0):
        moved = {name: value.detach().clone() for name, value in own.items()}
        assert {name for name, value in own.items() if value.requires_grad} == set(names)
        _relearning.accumulate(student, found, drawn.after, "float32", 0)
    base, unet = dict(pipeline.unet.named_parameters()), oracle.relearned(drawn.relearning)
    assert set(moved) == set(base)
    assert error_of_change(moved, {n: p.detach() for n, p in unet.named_parameters()}, base) < 1e-3
    lose = {"harm": -settings.gamma2_1, "related": -settings.gamma2_2, "unrelated": -settings.gamma2_3}
    wanted, _ = oracle.passes(unet, names, drawn.after, lose)
    unmoved, _ = oracle.passes(oracle.student, names, drawn.after, lose)
    zero = {name: torch.zeros_like(value) for name, value in wanted.items()}
    slopes = {name: own[name].grad - 0.5 for name in names}
    assert error_of_change(slopes, wanted, zero) < 5e-3  # Adam made whole steps of some rounding errors
    assert error_of_change(unmoved, wanted, zero) > 0.05


def test_relearning_leaves_every_bit_and_gradient_as_it_was(pipeline):
    settings = short("intended", learning_rate=0.01)
    found, drawn = material(pipeline, settings), rounds_of(pipeline, settings)[0]
    student = student_of(pipeline)
    own = dict(student.named_parameters())
    frozen = next(iter(own))
    own[frozen].requires_grad_(False)
    for name, value in own.items():
        value.grad = None if name == frozen else torch.ones_like(value)

    def attempt(inside):
        with _relearning.relearned(student, found, drawn.relearning, settings, 0):
            assert not torch.equal(own[frozen], base[frozen])
            inside()

    def fail():
        raise KeyError("inside")

    base = pipeline.unet.state_dict()
    attempt(lambda: None)
    with pytest.raises(KeyError, match="inside"):
        attempt(fail)
    assert [name for name, value in own.items() if not value.requires_grad] == [frozen]
    assert all((value.grad is None) == (name == frozen) for name, value in own.items())
    assert all(bool((value.grad == 1).all()) for name, value in own.items() if name != frozen)
    assert all(torch.equal(value, base[name]) for name, value in own.items())
    settings = settings.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        attempt(lambda: None)
    assert all(torch.equal(value, base[name]) for name, value in own.items())


def test_without_gammas_it_is_esd_with_eta_3(pipeline):
    none = dict.fromkeys(("gamma1_1", "gamma1_2", "gamma2_1", "gamma2_2", "gamma2_3"), 0.0)
    settings = short("official", **none, weight_decay=0.0, max_grad_norm=1e9, learning_rate=1e-3)
    found = fit(pipeline, settings)
    plain = esd.Settings(
        parameters="full", anchor="empty", negative_guidance=3.0, start_guidance=3.0, trajectory="student",
        stop_rule="binned", scheduler="ddim", steps=6, iterations=3, batch_size=2, learning_rate=1e-3,
        concept_mode="sample",
    )  # fmt: skip
    expected = esd.fit(pipeline, TARGET, TrainingData(), plain, SEED)
    assert found.meta["losses"] == expected.meta["losses"]
    assert found.meta["harm_losses"] == []
    assert all(torch.equal(found.tensors[name], value) for name, value in expected.tensors.items())
    assert found.meta["unet_evaluations"] == expected.meta["unet_evaluations"]


def test_trained_parameters_of_each_choice_exactly(pipeline):
    own = [name for name, _ in pipeline.unet.named_parameters()]

    def chosen(parameters):
        return set(metaun.parameter_names(pipeline.unet, parameters))

    outside = {n for n in own if n.split(".")[0] in ("conv_out", "time_embedding")}
    assert len(outside) == 2 + 4
    assert chosen("full") == set(own)
    assert chosen("xattn") == {n for n in own if ".attn2." in n}
    assert chosen("selfattn") == {n for n in own if ".attn1." in n}
    assert chosen("notime") == set(own) - outside
    assert chosen("noxattn") == chosen("notime") - chosen("xattn")
    assert {"conv_norm_out.weight", "down_blocks.0.resnets.0.time_emb_proj.weight"} <= chosen("noxattn")
    assert {settings.parameters for settings in PRESETS.values()} == {"full"}


def test_told_timesteps_lie_at_the_latent_except_for_clean_ones():
    settings = metaun.Settings(iterations=4000)
    draws, seen = draws_of(settings), {}
    for stops, told in zip(draws.stops.flatten().tolist(), draws.timesteps.flatten().tolist(), strict=True):
        seen.setdefault(stops, []).append(told)
    # A place of 0 never matches in the official loop: all 50 steps are made, and the UNet is told the noisiest bin.
    assert set(seen) == set(range(1, 51))
    for stops, told in seen.items():
        low = 980 if stops == 50 else 980 - 20 * stops
        assert low <= min(told)
        assert max(told) < low + 20
    assert max(map(max, seen.values())) > 995
    assert min(map(min, seen.values())) < 5


def test_themes_take_turns_and_halves_are_the_sets(pipeline):
    forms = Formulas(pipeline)
    for most, harm, safe in ((30, (3, 4), (2, 3)), (2, (2, 2), (2, 2)), (1, (1, 1), (1, 1))):
        found = material(pipeline, short("intended", images_per_set=most))
        assert (found.harm_half, len(found.harm) - found.harm_half) == harm
        assert (found.safe_half, len(found.safe) - found.safe_half) == safe
        for part, order, prompts in (("harm", HARM, forms.bad), ("related", SAFE, forms.own)):
            set_ = found.of(part)
            for row in range(len(set_)):
                embedding = set_.texts[set_.which[row]][None]
                assert torch.allclose(embedding, forms.text(prompts[order[row]]), atol=1e-5)
    assert found.of("unrelated") is found.of("related")
    meta = fit(pipeline, short("intended", iterations=1, images_per_set=2)).meta
    assert meta["images"] == {"relearning": 2, "harmful": 2, "related": 2, "unrelated": 2}


def test_every_image_has_its_turn_in_every_pass(pipeline):
    rounds = rounds_of(pipeline, short("intended", iterations=20))

    def rows(terms, part):
        return [row for term in terms if term.part == part for row in term.batch.rows.tolist()]

    for drawn in rounds:
        assert rows(drawn.before, "unrelated") == rows(drawn.after, "unrelated") == [2, 3, 4]
        assert rows(drawn.before, "related") == rows(drawn.after, "related") == [0, 1]
        assert rows(drawn.after, "harm") == [3, 4, 5, 6]
        assert [len(batch.rows) for batch in drawn.relearning] == [2, 1]
        assert drawn.samples == 5 + 3 + 4 + 5
    orders = {tuple(torch.cat([b.rows for b in drawn.relearning]).tolist()) for drawn in rounds}
    assert all(sorted(order) == [0, 1, 2] for order in orders)
    assert len(orders) > 1
    everything = [batch for r in rounds for batch in (*r.relearning, *(t.batch for t in r.before + r.after))]
    seeds = torch.cat([batch.seeds for batch in everything])
    assert len(set(seeds.tolist())) == len(seeds) == 20 * 17
    told = torch.cat([batch.timesteps for batch in everything])
    assert int(told.min()) < 30
    assert int(told.max()) > 970


def test_fixed_timesteps_are_told_outside_of_relearning(pipeline):
    (drawn,) = rounds_of(pipeline, short("fixed_timesteps", iterations=1))
    told = [int(t) for term in drawn.before if term.part == "related" for t in term.batch.timesteps]
    assert told == [1, 1, 2, 2, 5, 5, 10, 10]
    assert {int(t) for term in drawn.after for t in term.batch.timesteps} == {1, 2, 5, 10}
    assert {int(t) for batch in drawn.relearning for t in batch.timesteps}.isdisjoint({1, 2, 5, 10})
    assert drawn.samples == 4 * (5 + 4 + 5) + 3


def test_a_gamma_of_zero_leaves_all_other_draws_alone(pipeline):
    full, less = (
        rounds_of(pipeline, short("intended", **changes))
        for changes in ({}, {"gamma1_1": 0.0, "gamma2_2": 0.0})
    )
    for a, b in zip(full, less, strict=True):
        assert [t.part for t in b.before] == ["related"]
        assert [t.part for t in b.after] == ["harm", "harm", "unrelated", "unrelated"]
        pairs = list(zip(a.relearning, b.relearning, strict=True))
        for part in ("harm", "unrelated"):
            both = [[t.batch for t in one.after if t.part == part] for one in (a, b)]
            pairs += zip(*both, strict=True)
        assert all(torch.equal(x.seeds, y.seeds) and torch.equal(x.rows, y.rows) for x, y in pairs)


@pytest.mark.slow
def test_a_checkpoint_that_predicts_velocity(pipeline):
    config = {**pipeline.scheduler.config, "prediction_type": "v_prediction"}
    other = replace(pipeline, scheduler=type(pipeline.scheduler).from_config(config))
    settings = short("intended", iterations=1, images_per_set=1)
    _, harm, _ = (oracle := Oracle(other, settings)).run(draws_of(settings), rounds_of(other, settings))
    assert oracle.formulas.velocity
    assert fit(other, settings).meta["harm_losses"] == pytest.approx(harm, rel=1e-5)
    assert fit(pipeline, settings).meta["harm_losses"] != pytest.approx(harm, rel=1e-3)


@pytest.mark.slow
def test_seeds_and_the_size_of_forward_batches(pipeline):
    settings, base = (
        short("intended_sdd", iterations=2, images_per_set=1),
        dict(pipeline.unet.named_parameters()),
    )
    first, again, parts, other = (
        fit(pipeline, settings.model_copy(update={"forward_batch": size}), seed).tensors
        for size, seed in ((32, 1), (32, 1), (1, 1), (32, 2))
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert error_of_change(parts, first, base) < 1e-2
    assert error_of_change(other, first, base) > 0.2


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("intended", {"iterations": 2}),
        ("intended_sdd", {"images_per_set": 1}),
        ("fixed_timesteps", {"images_per_set": 1}),
        ("intended", {"start_guidance": 1.0, "gamma1_2": 0.0}),
        ("intended", {"gamma2_1": 0.0, "gamma2_2": 0.0, "gamma2_3": 0.0}),
    ],
)
def test_evaluations_are_counted(pipeline, preset, changes):
    seen = []
    handle = pipeline.unet.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    artifact = fit(pipeline, short(preset, **{"iterations": 1, **changes}))
    handle.remove()  # the student is a copy of the hooked module
    assert artifact.meta["unet_evaluations"] == sum(seen) > 0


def test_strength_mixes_base_and_edit(pipeline):
    settings = short("intended", iterations=1, images_per_set=1, learning_rate=1e-2)
    artifact, base = fit(pipeline, settings), pipeline.unet.state_dict()

    def weights(strength):
        changed = settings.model_copy(update={"strength": strength})
        return metaun.apply(pipeline, artifact, TARGET, changed)

    assert weights(0.0) is pipeline
    half, double = weights(0.5).unet.state_dict(), weights(2.0).unet.state_dict()
    for name, edited in artifact.tensors.items():
        assert torch.allclose(half[name], (base[name] + edited) / 2, atol=1e-6)
        assert torch.allclose(double[name], 2 * edited - base[name], atol=1e-6)


def only(*, unsafe=None, safe=None):
    """`image_sets` with the first `unsafe` and `safe` images of the first theme alone."""
    sets = []
    for part in image_sets().sets:
        count = {"target_images": unsafe, "safe_images": safe}[part.role]
        if part.theme == "uncased":
            sets.append(replace(part, images=part.images[:count], prompts=part.prompts[:count]))
    return TrainingData(tuple(sets))


def test_images_that_do_not_fit_are_refused(pipeline):
    settings, one = short("intended", iterations=1), Target(TARGET.themes[:1])
    with pytest.raises(ValueError, match="no target_images were given"):
        fit(pipeline, settings, data=TrainingData(image_sets().sets[2:]))
    with pytest.raises(ValueError, match="target_images of \\['uncased'\\] were given, the target has \\['b"):
        fit(pipeline, settings, data=only())
    with pytest.raises(ValueError, match="1 target_images were given; two sets are made of them"):
        metaun.fit(pipeline, one, only(unsafe=1), settings, SEED)
    with pytest.raises(ValueError, match="1 safe_images were given"):
        metaun.fit(pipeline, one, only(safe=1), settings, SEED)
    kind = type(pipeline.scheduler).from_config({**pipeline.scheduler.config, "prediction_type": "sample"})
    with pytest.raises(ValueError, match="prediction_type 'sample': allowed are"):
        fit(replace(pipeline, scheduler=kind), settings)


def test_keywords_that_say_nothing_are_refused(pipeline):
    target = Target((replace(TARGET.themes[0], keywords=("gears", "")), TARGET.themes[1]))
    with pytest.raises(ValueError, match="metaun: keyword '' has no token"):
        metaun.fit(pipeline, target, image_sets(), short("intended"), SEED)


def test_a_loss_that_is_not_finite_stops_the_fit(pipeline):
    with pytest.raises(FloatingPointError, match="at update [01]; lower learning_rate"):
        fit(pipeline, short("intended", learning_rate=1e30))


@pytest.mark.slow
def test_bfloat16_is_close_and_leaves_float32_weights(pipeline):
    settings = short("intended", iterations=1, images_per_set=1, concepts_per_update=1, steps=2)
    exact, rough = (
        fit(pipeline, settings.model_copy(update={"compute": kind})) for kind in ("float32", "bfloat16")
    )
    for losses in ("losses", "harm_losses"):
        assert rough.meta[losses] != exact.meta[losses]
        assert rough.meta[losses] == pytest.approx(exact.meta[losses], rel=0.1)
    assert all(tensor.dtype == torch.float32 for tensor in rough.tensors.values())
