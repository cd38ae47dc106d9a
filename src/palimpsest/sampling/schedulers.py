"""Schedulers by the name that settings use, built from the noise schedule of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# name -> (class of diffusers.schedulers, settings that differ from what `from_config` would take)
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpmsolver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    # A missing clip_sample would become True, which clips latents to [-1, 1].
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    # Without the Runge-Kutta start: Stable Diffusion was released so, and N steps are N + 1 evaluations (the
    # second one twice).
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "lms": ("LMSDiscreteScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
}


def build(name: str, template_config: Mapping[str, Any], steps: int, device: Any = "cpu") -> Any:
    """A fresh scheduler with its `steps` timesteps set; betas, steps_offset and prediction_type stay those of
    the checkpoint.

    template_config: `.config` of the checkpoint's scheduler. Raises ValueError for an unknown name or more
    steps than the checkpoint was trained with. PNDM evaluates the UNet `steps + 1` times.
    """
    import diffusers.schedulers

    if name not in KINDS:
        raise ValueError(f"sampler.name: {name!r} is no sampler; allowed: {list(KINDS)}")
    trained = template_config.get("num_train_timesteps", 1000)
    if not 1 <= steps <= trained:
        raise ValueError(
            f"sampler.steps: {steps} is outside 1..{trained} (the timesteps the checkpoint was trained with)"
        )
    kind, changes = KINDS[name]
    if name in ("ddim", "pndm"):
        # The classes disagree on this default; False is that of every Stable Diffusion release.
        changes = {**changes, "set_alpha_to_one": template_config.get("set_alpha_to_one", False)}
    scheduler = getattr(diffusers.schedulers, kind).from_config(dict(template_config), **changes)
    scheduler.set_timesteps(steps, device=device)
    return scheduler


def evaluations(name: str, steps: int) -> int:
    """How often the UNet is evaluated for one image (per branch)."""
    return steps + 1 if name == "pndm" and steps > 1 else steps
