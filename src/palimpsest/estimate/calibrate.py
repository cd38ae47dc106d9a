"""Rates of the machine at hand, measured with networks of the experiment's own kind and random weights, for about a given time."""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from palimpsest.estimate import chips, flops, networks
from palimpsest.plan.build import Plan

# A UNet of more operations per evaluation than this is measured by its upper half on a CPU, which would not finish one in time.
HEAVY = 2e11
# Parts of the time: what is built and run once before it counts takes about as long again.
SHARES = {"sampling": 0.3, "training": 0.3, "coding": 0.15, "judging": 0.15, "matmul": 0.1}


@dataclass(frozen=True)
class Machine:
    """Where torch runs. dtype: what is measured first; every other format by its rate of matrix products beside it."""

    device: str
    title: str
    memory: float
    dtypes: tuple[str, ...]
    versions: str


def machine(plan: Plan) -> Machine:
    """This machine, and the number formats that the experiment uses."""
    import diffusers
    import torch

    used = [run.sampler.dtype for run in plan.runs] + [plan.params.training_images.sampler.dtype]
    used += [chosen.spec.dtype for chosen in plan.detectors.values()]
    dtypes = tuple(dict.fromkeys(["float32", *used]))
    versions = f"torch {torch.__version__}, diffusers {diffusers.__version__}, {time.strftime('%Y-%m-%d')}"
    if torch.cuda.is_available():
        about = torch.cuda.get_device_properties(0)
        both = tuple(dict.fromkeys([*dtypes, "bfloat16"]))
        return Machine("cuda", about.name, float(about.total_memory), both, versions)
    title = f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
    return Machine("cpu", title, 0.0, dtypes, versions)


def measure(plan: Plan, seconds: float, name: str | None = None) -> chips.Chip:
    """A chip with measured rates. seconds: about how long, beside the time that torch needs to start. name: what to keep it under."""
    found = machine(plan)
    rates: dict[str, dict[str, float]] = {kind: {} for kind in chips.KINDS}
    products = {
        dtype: matmul(found.device, dtype, seconds * SHARES["matmul"] / len(found.dtypes))
        for dtype in found.dtypes
    }
    first = [dtype for dtype in found.dtypes if products[dtype] > 0.1 * products["float32"]] or ["float32"]
    remarks = []
    for dtype in found.dtypes:
        if dtype not in first:
            remarks.append(
                f"{dtype} by its matrix products, {products[dtype] / products['float32']:.3f} x float32"
            )
    for dtype in first:
        for kind, build in works(plan, found.device, dtype).items():
            work, operations = build()
            rates[kind][dtype] = operations / timed(work, found.device, seconds * SHARES[kind] / len(first))
    for dtype in found.dtypes:
        for kind in chips.KINDS:
            rates[kind].setdefault(dtype, rates[kind]["float32"] * products[dtype] / products["float32"])
    fixed = chips.table()
    source = (
        f"measured here for about {seconds:g} s: {found.title}, {found.versions}; matrix products "
        + ", ".join(f"{dtype} {rate / 1e12:.3g} TFLOP/s" for dtype, rate in products.items())
        + "; images "
        + ", ".join(f"{dtype} {rates['sampling'][dtype] / products[dtype]:.0%} of that" for dtype in first)
        + ("".join(f"; {remark}" for remark in remarks))
    )
    known = name or chips.called(found.title) or re.sub("[^a-z0-9]+", "-", found.title.lower()).strip("-")
    # rates were measured with calls and all, so kernels that start slowly are in them
    return chips.Chip(
        known,
        found.title,
        found.memory,
        rates,
        0.0,
        fixed["start"],
        1e9 * fixed["read"],
        source,
        measured=True,
    )


def timed(work: Callable[[], Any], device: str, seconds: float) -> float:
    """Seconds of one call: the mean of as many as there is time for, at least two, after one that does not count."""
    import torch

    def done() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    work()
    began, count = done(), 0
    while count < 2 or (time.perf_counter() - began) * (count + 1) / count < seconds / 2:
        work()
        count += 1
    return (done() - began) / count


def matmul(device: str, dtype: str, seconds: float) -> float:
    """Operations a second of a product of square matrices."""
    import torch

    side = 8192 if device == "cuda" else 1024
    kind = getattr(torch, dtype)
    a, b = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
    return 2.0 * side**3 / timed(lambda: a @ b, device, seconds)


Built = Callable[[], tuple[Callable[[], Any], float]]


def works(plan: Plan, device: str, dtype: str) -> dict[str, Built]:
    """Kind of work -> what builds it: a call to time, and its operations."""
    params = plan.params
    model = params.model
    own = networks.Diffusion(model.path, model.revision, model.architecture, model.resolution, plan.root)
    batch = (
        params.sampler.batch
        if device == "cuda"
        else min(params.sampler.batch, max(1, int(HEAVY / own.evaluation)))
    )
    config, side = measured_unet(own.unet, own.latent_side, device)

    def sampling() -> tuple[Callable[[], Any], float]:
        call = unet_call(config, side, 2 * batch, device, dtype, False)
        return call, 2 * batch * sum(flops.unet(config, side).values())

    def training() -> tuple[Callable[[], Any], float]:
        few = min(4, batch)
        call = unet_call(config, side, few, device, dtype, True)
        return call, 3 * few * sum(flops.unet(config, side).values())

    def coding() -> tuple[Callable[[], Any], float]:
        return decoder_call(own.vae, min(own.side, 512 if device == "cuda" else 128), device, dtype)

    def judging() -> tuple[Callable[[], Any], float]:
        return talker_call(device, dtype)

    return {"sampling": sampling, "training": training, "coding": coding, "judging": judging}


def measured_unet(config: Mapping[str, Any], side: int, device: str) -> tuple[dict[str, Any], int]:
    """The configuration that is measured: the model's own, or on a CPU its first two levels at a quarter of the area where it is heavy."""
    plain = {name: value for name, value in config.items() if not name.startswith("_")}
    if device == "cuda" or sum(flops.unet(plain, side).values()) <= HEAVY:
        return plain, side
    upper = len(plain["block_out_channels"]) - 2
    for name in ("block_out_channels", "down_block_types"):
        plain[name] = list(plain[name])[:2]
    plain["up_block_types"] = list(plain["up_block_types"])[upper:]
    for name in ("attention_head_dim", "transformer_layers_per_block"):
        if isinstance(plain.get(name), list):
            plain[name] = plain[name][:2]
    return plain, max(8, side // 2)


def unet_call(
    config: Mapping[str, Any], side: int, count: int, device: str, dtype: str, train: bool
) -> Callable[[], Any]:
    """One evaluation of `count` samples; in training with the gradients of all weights."""
    import torch
    from diffusers.models import UNet2DConditionModel

    kind = getattr(torch, dtype)
    with torch.device(device):
        # not diffusers' own `to`, which warns of casts
        unet = torch.nn.Module.to(UNet2DConditionModel(**config), kind)
        latents = torch.randn(count, config["in_channels"], side, side, dtype=kind)
        texts = torch.randn(count, flops.TOKENS, config["cross_attention_dim"], dtype=kind)
        times, more = torch.full((count,), 500), {}
        if config.get("addition_embed_type") == "text_time":
            wide = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
            more = {
                "text_embeds": torch.randn(count, wide, dtype=kind),
                "time_ids": torch.zeros(count, 6, dtype=kind),
            }
    unet.requires_grad_(train)

    def call() -> None:
        with torch.set_grad_enabled(train):
            said = unet(latents, times, texts, added_cond_kwargs=more or None).sample
            if train:
                said.square().mean().backward()
                unet.zero_grad()

    return call


def decoder_call(
    config: Mapping[str, Any], side: int, device: str, dtype: str
) -> tuple[Callable[[], Any], float]:
    """Decoding of one image."""
    import torch
    from diffusers.models import AutoencoderKL

    levels = len(config["block_out_channels"])
    blocks = {
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }
    plain = {name: value for name, value in config.items() if not name.startswith("_")}
    small = side // 2 ** (levels - 1)
    with torch.device(device):
        vae = torch.nn.Module.to(AutoencoderKL(**{**blocks, **plain}), getattr(torch, dtype))
        latents = torch.randn(1, config["latent_channels"], small, small, dtype=getattr(torch, dtype))

    def call() -> None:
        with torch.no_grad():
            vae.decode(latents)

    return call, flops.decoder({"out_channels": 3, **config}, side)


def talker_call(device: str, dtype: str) -> tuple[Callable[[], Any], float]:
    """One question to a T5 whose layers are as wide as the judge's on a GPU, a quarter as wide on a CPU, and fewer."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    width, count, tokens = (4096, 8, 646) if device == "cuda" else (1024, 1, 646)
    config = {
        "d_model": width, "d_ff": width * 5 // 2, "d_kv": 64, "num_heads": width // 64, "num_layers": 2, "vocab_size": 32128,
        "feed_forward_proj": "gated-gelu",
    }  # fmt: skip
    kind = getattr(torch, dtype)
    with torch.device(device):
        model = T5ForConditionalGeneration(T5Config(**config)).to(kind).eval()
        states, answer = (
            torch.randn(count, tokens, width, dtype=kind),
            torch.zeros(count, 2, dtype=torch.long),
        )

    def call() -> None:
        with torch.no_grad():
            model(inputs_embeds=states, decoder_input_ids=answer, use_cache=False)

    return call, count * flops.t5(config, tokens)
