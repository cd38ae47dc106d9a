"""One training loop for every model of the micro world: restartable, logged, without pickles."""

from __future__ import annotations

import ctypes
import json
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train. ``steps`` counts optimiser steps; ``slow`` holds prefixes of parameter names and
    what their learning rate is multiplied by (parts that are already trained)."""

    steps: int
    lr: float
    warmup: int = 100
    weight_decay: float = 0.01
    final_lr: float = 0.02
    clip_norm: float = 1.0
    ema: float = 0.0
    slow: tuple[tuple[str, float], ...] = ()
    log_every: int = 25
    save_every: int = 200


def arithmetic() -> torch.autocast:
    """Where networks are evaluated: bfloat16 where the processor computes in it (it is emulated elsewhere, tens of times
    slower than float32), weights and optimiser in float32."""
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.autocast("cpu", torch.bfloat16, enabled=native)


def keep_memory() -> None:
    """Ask glibc to keep freed memory. Otherwise every large tensor is mapped and unmapped anew, and page faults take
    half of the processor time here. Does nothing on other C libraries."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, mmap_threshold = -1, -3
    mallopt(mmap_threshold, 1 << 30)
    mallopt(trim_threshold, (1 << 31) - 1)


def learning_rate(plan: Plan, step: int) -> float:
    """Linear warm-up, then a half cosine down to ``final_lr`` times the peak."""
    if step < plan.warmup:
        return plan.lr * (step + 1) / plan.warmup
    share = (step - plan.warmup) / max(1, plan.steps - plan.warmup)
    return plan.lr * (plan.final_lr + (1 - plan.final_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))


def _state(optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    entries = optimiser.state_dict()["state"]
    return {
        f"optimiser.{i}.{key}": value.clone() for i, entry in entries.items() for key, value in entry.items()
    }


def save_checkpoint(
    folder: Path,
    step: int,
    model: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    ema: dict[str, torch.Tensor],
) -> None:
    """Write weights, optimiser and running averages atomically to ``folder/checkpoint.safetensors``."""
    tensors = {
        f"model.{name}": value.detach().clone().contiguous() for name, value in model.state_dict().items()
    }
    tensors |= _state(optimiser) | {f"ema.{name}": value for name, value in ema.items()}
    draft = folder / "checkpoint.safetensors.part"
    save_file(tensors, draft, metadata={"step": str(step)})
    os.replace(draft, folder / "checkpoint.safetensors")


def load_checkpoint(
    folder: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer, ema: dict[str, torch.Tensor]
) -> int:
    """Continue from ``folder/checkpoint.safetensors``; returns the step to do next (0 without a checkpoint)."""
    step = steps_done(folder)
    if step == 0:
        return 0
    tensors = load_file(folder / "checkpoint.safetensors")
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    ema.update({k.removeprefix("ema."): v for k, v in tensors.items() if k.startswith("ema.")})
    states: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimiser."):
            _, index, key = name.split(".", 2)
            states.setdefault(int(index), {})[key] = value
    optimiser.load_state_dict({"state": states, "param_groups": optimiser.state_dict()["param_groups"]})
    return step


def steps_done(folder: Path) -> int:
    """How many steps the checkpoint in ``folder`` has behind it; 0 without one."""
    from safetensors import safe_open

    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return 0
    with safe_open(path, framework="pt") as handle:
        return int(handle.metadata()["step"])


def groups_of(model: torch.nn.Module, plan: Plan) -> list[dict[str, Any]]:
    """Trainable parameters in one group per learning rate, ``factor`` beside each; parameters keep their order."""
    groups: list[dict[str, Any]] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            factor = next((value for prefix, value in plan.slow if name.startswith(prefix)), 1.0)
            if not groups or groups[-1]["factor"] != factor:
                groups.append({"params": [], "factor": factor})
            groups[-1]["params"].append(parameter)
    return groups


def fit(
    model: torch.nn.Module,
    loss_of: Callable[[int, np.random.Generator], dict[str, torch.Tensor]],
    plan: Plan,
    out: Path,
    seed: int,
    after: Callable[[int, dict[str, torch.Tensor]], None] | None = None,
    minutes: float | None = None,
) -> dict[str, torch.Tensor]:
    """Train ``model`` in place and return its running averages (its plain weights where ``plan.ema`` is 0).

    ``loss_of(step, rng)`` returns losses by name; ``"loss"`` is minimised. Its ``rng`` depends on seed and step only,
    so a restarted run sees the batches an unbroken one would. ``after(step, weights)`` runs at every checkpoint. Losses go to
    ``out/log.jsonl``. ``minutes`` stops early (at a checkpoint), to be continued by the same call.
    """
    keep_memory()
    out.mkdir(parents=True, exist_ok=True)
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = groups_of(model, plan)
    optimiser = torch.optim.AdamW(
        groups, lr=plan.lr, weight_decay=plan.weight_decay, betas=(0.9, 0.98), fused=True
    )
    ema = {n: v.detach().clone() for n, v in model.state_dict().items()} if plan.ema else {}
    start, began = load_checkpoint(out, model, optimiser, ema), time.monotonic()
    means: dict[str, list[float]] = {}
    for step in range(start, plan.steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(plan, step) * group["factor"]
        losses = loss_of(step, np.random.default_rng([seed, step]))
        optimiser.zero_grad(set_to_none=True)
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(trained, plan.clip_norm)
        optimiser.step()
        update_average(ema, model, min(plan.ema, (step + 1) / (step + 10)))
        for name, value in losses.items():
            means.setdefault(name, []).append(float(value.detach()))
        done = step + 1
        if done % plan.log_every == 0 or done == plan.steps:
            _log(out, done, means, learning_rate(plan, step), (time.monotonic() - began) / (done - start))
            means = {}
        if done % plan.save_every == 0 or done == plan.steps:
            save_checkpoint(out, done, model, optimiser, ema)
            if after is not None:
                after(done, ema or dict(model.state_dict()))
            if minutes is not None and time.monotonic() - began > 60 * minutes:
                break
    return ema or dict(model.state_dict())


@torch.no_grad()
def update_average(ema: dict[str, torch.Tensor], model: torch.nn.Module, decay: float) -> None:
    """``ema = decay * ema + (1 - decay) * weights``, in place; nothing where ``ema`` is empty."""
    if not ema:
        return
    weights = model.state_dict()
    names = [name for name, value in ema.items() if value.is_floating_point()]
    torch._foreach_lerp_([ema[name] for name in names], [weights[name] for name in names], 1 - decay)


def _log(out: Path, step: int, means: dict[str, list[float]], lr: float, seconds: float) -> None:
    row = {"step": step, "lr": round(lr, 7), "s_per_step": round(seconds, 4)}
    row |= {name: round(float(np.mean(values)), 5) for name, values in means.items()}
    with (out / "log.jsonl").open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(row) + "\n")


def count_parameters(tensors: Iterable[torch.Tensor]) -> int:
    """Number of scalars in ``tensors``."""
    return sum(tensor.numel() for tensor in tensors)
