"""A whole checkpoint from one safetensors file in the layout of the first releases: configurations come from a folder beside it.

`diffusers` translates the names. It is given the configuration, so it asks no network for one, and a tensor that is not in the file is an
error here, where it would else be left without a value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# What the layout calls the UNet, the autoencoder and the text encoders (of Stable Diffusion v1, v2, XL).
UNET, VAE = "model.diffusion_model.", "first_stage_model."
TEXT = ("cond_stage_model.", "conditioner.embedders.")
SHOWN = 5


def components(path: Path, configs: Path, dtype: Any, names: Sequence[str]) -> dict[str, Any]:
    """The parts `names` of the checkpoint. configs: a diffusers folder without weights, its kind told by its model_index.json.

    Raises ValueError for a file in another layout or with tensors missing.
    """
    import json

    import diffusers

    _check_layout(path)
    kind = json.loads((configs / "model_index.json").read_text(encoding="utf-8")).get(
        "_class_name", "StableDiffusionPipeline"
    )
    pipeline = getattr(diffusers, kind)
    # without these two, a network would be asked for parts that are not used here
    unused = {"safety_checker": None, "feature_extractor": None} if kind == "StableDiffusionPipeline" else {}
    try:
        whole = pipeline.from_single_file(
            str(path), config=str(configs), torch_dtype=dtype, local_files_only=True, **unused
        )
    except Exception as error:
        if lacking := _lacking(path, configs):
            raise ValueError(_incomplete(path, lacking)) from error
        raise
    found = {name: getattr(whole, name) for name in names}
    empty = [
        f"{name}.{tensor}"
        for name, part in found.items()
        for tensor, value in (part.named_parameters() if hasattr(part, "named_parameters") else ())
        if value.is_meta
    ]
    if empty:
        raise ValueError(_incomplete(path, empty))
    return found


def _incomplete(path: Path, lacking: Sequence[str]) -> str:
    more = f" and {len(lacking) - SHOWN} more" if len(lacking) > SHOWN else ""
    return (
        f"{path} has no tensors for {', '.join(lacking[:SHOWN])}{more}: the file is incomplete, or the configuration in "
        f"{path.with_suffix('')} is of another model. Fetch the file again and compare its digest, or put the right configuration there."
    )


def _check_layout(path: Path) -> None:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        keys = list(file.keys())
    wanted = {"the UNet": (UNET,), "the autoencoder": (VAE,), "the text encoder": TEXT}
    absent = [what for what, prefixes in wanted.items() if not any(key.startswith(prefixes) for key in keys)]
    if absent:
        raise ValueError(
            f"{path} is no checkpoint in the original layout: it has no tensors of {', '.join(absent)} ({UNET}*, {VAE}*, {TEXT[0]}* or "
            f"{TEXT[1]}*), its first is {keys[0] if keys else 'none'!r}. For a diffusers checkpoint give its folder; an adapter or a lone "
            "UNet is no whole checkpoint."
        )


def _lacking(path: Path, configs: Path) -> list[str]:
    """Names of the UNet's and the autoencoder's tensors that the file has none for."""
    import torch
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
    from diffusers.models import AutoencoderKL, UNet2DConditionModel
    from safetensors.torch import load_file

    given: Mapping[str, Any] = load_file(path)
    found = []
    kinds = (
        ("unet", UNet2DConditionModel, convert_ldm_unet_checkpoint),
        ("vae", AutoencoderKL, convert_ldm_vae_checkpoint),
    )
    for name, kind, converted in kinds:
        config = kind.load_config(configs, subfolder=name, local_files_only=True)
        with torch.device("meta"):
            wanted = set(kind.from_config(config).state_dict())
        try:
            there = set(converted(dict(given), config=config))
        except KeyError as error:
            found.append(f"{name} ({error.args[0]})")
            continue
        found += [f"{name}.{tensor}" for tensor in sorted(wanted - there)]
    return found
