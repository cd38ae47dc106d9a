"""How much work a method is, declared from its settings before anything is run: passes through the UNet in fitting, and per image.

Declared here and not in the methods' own modules, because whatever is in those is part of the recipe of every fit. A method from
elsewhere declares its own: functions `passes(settings, work)` and `sampling(settings, sampler)` in its module, with the meaning that
they have here. Draws that are random count with their mean. A test compares all of this with what the fits record and what is really
evaluated.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from palimpsest.specs import Sampler


@dataclass(frozen=True)
class Work:
    """What a fit is given. keywords: different ones of all themes; images: training images per theme; retained: benign prompts."""

    keywords: int
    themes: int
    images: int = 0
    retained: int = 0


@dataclass(frozen=True)
class Pass:
    """Passes forward through the UNet. samples: of single samples; calls: of the network, which a chip cannot make faster than its
    kernels start. backward: what the gradients of a sample cost, in passes forward (1: of activations alone, 2: of weights too).
    size: what a sample costs, in evaluations at the model's own resolution.
    """

    samples: float
    calls: float
    backward: float = 0.0
    size: float = 1.0


@dataclass(frozen=True)
class Sampling:
    """branches: UNet evaluations per step and image. checkpoint: architecture and side of another network that makes the images.
    vision: passes through CLIP's vision tower per image.
    """

    branches: float
    architecture: str | None = None
    resolution: int | None = None
    vision: int = 0


def passes(module: str, settings: Mapping[str, Any], work: Work) -> list[Pass] | None:
    """The passes of one fit; none for closed forms, None when the method declares nothing."""
    own = getattr(importlib.import_module(module), "passes", None)
    declared = own or PASSES.get(module.rpartition(".")[2])
    return None if declared is None else list(declared(settings, work))


def sampling(module: str, settings: Mapping[str, Any], sampler: Sampler) -> Sampling:
    """What one image costs; for a method that declares nothing what it costs without the method."""
    name, found = module.rpartition(".")[2], importlib.import_module(module)
    if hasattr(found, "produce"):
        return Sampling(0.0)
    own = getattr(found, "sampling", None) or SAMPLING.get(name)
    usual = 2.0 if sampler.guidance > 1 else 1.0
    return Sampling(usual) if own is None else own(settings, sampler)


# --- parts --------------------------------------------------------------------------------------------------------------------------


def mean_stop(settings: Mapping[str, Any]) -> float:
    """Mean number of sampler steps of a training latent, by the stop rule (see `_stops`)."""
    steps = settings["steps"]
    uniform = (steps - 1) / 2
    return {"compvis": steps - uniform - 1 / steps, "binned": uniform + 1, "exact": uniform}[
        settings["stop_rule"]
    ]


def _groups(samples: float, at_once: float) -> int:
    return math.ceil(samples / at_once)


def _partial(
    settings: Mapping[str, Any], samples: float, mean: float, at_once: float, size: float = 1.0
) -> Pass:
    """Partial denoising of samples that go `at_once` through the sampler, sorted, in batches of `forward_batch`; the longest of a batch
    decides its calls.
    """
    branches, groups = 2 if settings["start_guidance"] > 1 else 1, _groups(at_once, settings["forward_batch"])
    longest = mean + (settings["steps"] - mean) * (at_once - 1) / (at_once + 1)
    calls = (groups - 1) * mean + longest
    return Pass(branches * samples * mean, samples / at_once * calls, size=size)


def _ahead(settings: Mapping[str, Any], samples: float, mean: float) -> Pass:
    """Partial denoising in advance: sorted by where they stop, in batches of `forward_batch`."""
    at_once = min(settings["forward_batch"], samples)
    branches = 2 if settings["start_guidance"] > 1 else 1
    return Pass(branches * samples * mean, samples / at_once * mean + settings["steps"] - mean)


def _updates(settings: Mapping[str, Any], images: int) -> int:
    """Updates of one epoch."""
    return settings["iterations"] or max(1, math.ceil(images / settings["batch_size"]))


def _weights(parameters: str) -> float:
    """What gradients cost, by the parameters that are trained: cross-attention has few, and all activations lie before it."""
    few = ("xattn", "esd-x", "esd-x-strict", "cross-attn")
    return 1.0 if parameters in few else 1.5 if parameters in ("attn", "selfattn") else 2.0


# --- methods ------------------------------------------------------------------------------------------------------------------------


def _none(settings: Mapping[str, Any], work: Work) -> list[Pass]:
    """Nothing to fit, or a closed form that evaluates no UNet."""
    return []


def esd(settings: Mapping[str, Any], work: Work) -> list[Pass]:
    size, count = settings["size_factor"] ** 2, settings["iterations"]
    samples, mean = count * settings["batch_size"], mean_stop(settings)
    frozen = 3 if settings["erase_from"] is not None else 2
    if settings["trajectory"] == "frozen":
        start, teacher = _ahead(settings, samples, mean), _groups(samples, settings["forward_batch"])
    else:
        start, teacher = _partial(settings, samples, mean, settings["batch_size"]), count
    return [
        Pass(start.samples, start.calls, size=size),
        Pass(frozen * samples, teacher, size=size),
        Pass(samples, count, _weights(settings["parameters"]), size),
    ]


def au(settings: Mapping[str, Any], work: Work) -> list[Pass]:
    updates, mean = range(settings["iterations"]), mean_stop(settings)
    attacked = [
        u for u in updates if u % settings["attack_every"] == 0 and u >= settings["warmup_iterations"]
    ]
    size, attacks = settings["batch_size"], len(attacked) * settings["attack_steps"]
    beside = min(settings["retain_batch"], work.retained)
    each = {"iter": settings["retain_steps"], "reg": 1, "off": 0}[settings["retain_mode"]]
    apart = len(updates) * each if settings["retain_mode"] == "iter" else 0
    erased = len(updates) * size
    samples = attacks * size + erased + len(updates) * each * beside
    frozen = samples + erased  # an erased sample has a second prediction, for the empty prompt
    # the gradient of a text runs through the whole UNet, and reaches none of its weights
    return [
        _ahead(settings, samples, mean),
        Pass(frozen, _groups(frozen, settings["forward_batch"])),
        Pass(samples, attacks + len(updates) + apart, 1.0),
    ]


def ac(settings: Mapping[str, Any], work: Work) -> list[Pass]:
    count = settings["iterations"]
    plain = count * settings["batch_size"]
    trained = plain * (2 if settings["prior_preservation"] else 1)
    target = [Pass(plain, count)] if settings["loss"] == "model" else []
    return [*target, Pass(trained, count, _weights(settings["parameters"]))]


def ace(settings: Mapping[str, Any], work: Work) -> list[Pass]:
    count = settings["iterations"]
    samples = count * settings["batch_size"]
    held = len(settings["anchors"] or ()) or work.retained or work.themes
    if not settings["prior_weight"] and settings["correction"] != "anchors":
        held = 0
    each = min(settings["anchor_batch"], held)
    surrogate = settings["correction"] == "surrogate" and settings["surrogate"] != ""
    mean = settings["steps"] if settings["xt"] == "official_clean" else (settings["steps"] - 1) / 2
    return [
        _partial(settings, samples, mean, settings["batch_size"]),
        Pass((2 + each + surrogate) * samples, count),
        Pass((2 + (each if settings["prior_weight"] else 0)) * samples, count, 1.0),
    ]


def spm(settings: Mapping[str, Any], work: Work) -> list[Pass]:
    from palimpsest.methods import spm as method

    count = settings["iterations"] * (work.keywords if settings["adapter_mode"] == "per_keyword" else 1)
    samples = count * settings["batch_size"]
    empties, counted = method.counted_anchors(method.Settings.model_validate(settings))
    held = len(counted) + (empties > 0)
    neutral = 0 if settings["neutral"] == "" and empties else 1
    # sides of 32 to 56 of 64 have 47 % of the area on average
    size = 0.47 if settings["dynamic_resolution"] else 1.0
    return [
        _partial(settings, samples, settings["steps"] / 2, settings["batch_size"], size),
        Pass((1 + neutral + held) * samples, count, size=size),
        Pass((1 + held) * samples, count, 1.0, size),
    ]


def salun(settings: Mapping[str, Any], work: Work) -> list[Pass]:
    unsafe = work.images * work.themes
    count = settings["iterations"] or settings["epochs"] * _updates(settings, unsafe)
    samples, at_once = count * settings["batch_size"], settings["forward_batch"]
    trained = samples * (2 if settings["alpha"] else 1)
    found = [Pass(samples, count), Pass(trained, count, _weights(settings["parameters"]))]
    if settings["mask_ratio"] is not None:
        masked = 2 * min(settings["mask_images"] or unsafe, unsafe)
        found.append(Pass(masked, _groups(masked, at_once), 2.0))
    return found


def erasediff(settings: Mapping[str, Any], work: Work) -> list[Pass]:
    count = settings["epochs"] * _updates(settings, work.images * work.themes)
    size, inner = settings["batch_size"], settings["inner_steps"]
    backward = _weights(settings["parameters"])
    if settings["mode"] == "official":
        count *= inner  # as many steps inside as outside
        return [Pass(2 * count * size, 2 * count), Pass(3 * count * size, 2 * count, backward)]
    found = [Pass(count * size, count), Pass(2 * count * size, count, backward)]
    if settings["weight_rule"] == "value":
        found.append(Pass((inner + 2) * count * size, (inner + 2) * count))
        found.append(Pass(inner * count * size, inner * count, backward))
    return found


def mace(settings: Mapping[str, Any], work: Work) -> list[Pass]:
    samples = settings["iterations"] * work.keywords
    return [Pass(samples, settings["iterations"] * _groups(work.keywords, settings["keyword_batch"]), 1.0)]


def metaun(settings: Mapping[str, Any], work: Work) -> list[Pass]:
    count, student = settings["iterations"], settings["variant"] == "esd"
    each = settings["concepts_per_update"]
    samples, binned = count * each, {**settings, "stop_rule": "binned"}
    whole = min(2 * settings["images_per_set"], work.images * work.themes)
    half, rest = whole // 2, whole - whole // 2
    times = len(settings["fixed_timesteps"]) or 1
    weighed = {"gamma1_1": rest, "gamma1_2": half, "gamma2_1": rest, "gamma2_2": half, "gamma2_3": rest}
    sets = [images for name, images in weighed.items() if settings[name] for _ in range(times)]
    if any(settings[name] for name in weighed if name.startswith("gamma2")):
        sets.append(half)  # relearning
    batches = sum(_groups(images, settings["batch_size"]) for images in sets)
    mean = mean_stop(binned)
    start = _partial(binned, samples, mean, each) if student else _ahead(binned, samples, mean)
    return [
        start,
        Pass((2 if student else 1) * samples, count),
        Pass(samples, count, _weights(settings["parameters"])),
        Pass(count * sum(sets), count * batches, 2.0),
    ]


def selfd(settings: Mapping[str, Any], work: Work) -> list[Pass]:
    images, size = work.images * work.themes, settings["batch_size"]
    epoch = math.ceil(images / size)
    updates = settings["iterations"] or settings["epochs"] * epoch
    whole, left = divmod(updates, epoch)
    samples = whole * images + min(left * size, images)
    return [Pass(samples, updates, 0.6)]  # the gradient ends at the middle block


Declared = Callable[[Mapping[str, Any], Work], list[Pass]]
PASSES: dict[str, Declared] = {
    "ac": ac, "ace": ace, "au": au, "erasediff": erasediff, "esd": esd, "mace": mace, "metaun": metaun, "rece": _none,
    "salun": salun, "selfd": selfd, "spm": spm, "uce": _none,
}  # fmt: skip


# --- per image ----------------------------------------------------------------------------------------------------------------------


def _usual(sampler: Sampler) -> float:
    return 2.0 if sampler.guidance > 1 else 1.0


def _sld(settings: Mapping[str, Any], sampler: Sampler) -> Sampling:
    acts = sampler.guidance > 1 and settings["strength"] and settings["guidance_scale"] >= 1
    return Sampling(_usual(sampler) + (1 if acts else 0))


def _safree(settings: Mapping[str, Any], sampler: Sampler) -> Sampling:
    """At most: how long a prompt is filtered follows from the prompt."""
    most = settings["most_fraction"]
    share = most if most is not None else min(1.0, settings["most_steps"] / sampler.steps)
    return Sampling(_usual(sampler) + (share if settings["re_attention"] else 0))


def _cleaned(settings: Mapping[str, Any], sampler: Sampler) -> Sampling:
    if settings["parts"] == "unet":
        return Sampling(_usual(sampler))
    return Sampling(_usual(sampler), settings["architecture"], settings["resolution"])


def _safety_checker(settings: Mapping[str, Any], sampler: Sampler) -> Sampling:
    return Sampling(_usual(sampler), vision=1)


SAMPLING: dict[str, Callable[[Mapping[str, Any], Sampler], Sampling]] = {
    "cleaned": _cleaned, "safety_checker": _safety_checker, "safree": _safree, "sld": _sld,
}  # fmt: skip
