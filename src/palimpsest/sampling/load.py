"""Load a checkpoint into a Pipeline. Nothing is ever downloaded: what is missing is named, with the command
that fetches it.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palimpsest.sampling.architecture import Architecture, architecture_of, check
from palimpsest.sampling.pipeline import Pipeline

if TYPE_CHECKING:
    from palimpsest.specs import Model

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
# Parts that only Stable Diffusion XL has.
SECOND = ("text_encoder_2", "tokenizer_2")
SECOND_WEIGHTS = {"text_encoder_2": "model"}
# Where a diffusers repository has the weights of its parts.
DIFFUSERS = ("*/*.safetensors",)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


class MissingModel(FileNotFoundError):
    """A checkpoint that is not on this machine. The message says what to put where."""


def load_pipeline(
    model: Model, dtype: str = "float32", device: Any = None, setting: str = "model.path"
) -> Pipeline:
    """The pipeline of a checkpoint in eval mode, without gradients, weights cast to `dtype` ("float32",
    "bfloat16", "float16").

    model.path: a diffusers folder, a single `.safetensors` file (its configs and tokenizer in a folder of the
    same name without the suffix), or a hub id whose snapshot is in the local cache. device: default CUDA when
    there is one, else the CPU. setting: what messages call the path. Raises MissingModel when the checkpoint
    or a part of it is not there, ValueError for an architecture that is not the one the settings say or that this
    pipeline has no place for.
    """
    import torch

    path = Path(model.path)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if path.suffix == ".safetensors":
        parts = _single_file(path, getattr(torch, dtype), setting, model.architecture)
    else:
        folder = checkpoint_folder(model.path, model.revision, setting)
        parts = _folder(folder, getattr(torch, dtype), setting, model.architecture)
    for name in (*WEIGHTS, *SECOND_WEIGHTS):
        if name in parts:
            parts[name].to(device).eval().requires_grad_(False)
    return Pipeline(**parts)


def load_unet(
    path: str,
    revision: str | None = None,
    dtype: str = "float32",
    device: Any = "cpu",
    setting: str = "model.path",
) -> Any:
    """The UNet of a checkpoint of which nothing else has to be there: the folder `unet` of a diffusers folder or cached snapshot.

    In eval mode and without gradients. Raises MissingModel as `load_pipeline` does.
    """
    import torch
    from diffusers.models import UNet2DConditionModel

    folder = checkpoint_folder(path, revision, setting)
    kind = architecture_of(folder, setting)
    variant = _check(folder, ("unet",))["unet"]
    if kind == "sdxl":
        from palimpsest.sampling import sdxl

        unet: Any = sdxl.load_unet(folder, getattr(torch, dtype), variant)
    else:
        unet = UNet2DConditionModel.from_pretrained(
            folder / "unet", torch_dtype=getattr(torch, dtype), use_safetensors=True, **variant
        )
    return unet.to(device).eval().requires_grad_(False)


def checkpoint_folder(path: str, revision: str | None, setting: str, *weights: str) -> Path:
    """A folder of weights: the path itself, or the cached snapshot of a hub id.

    weights: where a hub repository may have them, for the command in the message; by default in a folder per part. Raises MissingModel
    when there is neither.
    """
    return Path(path) if Path(path).is_dir() else _snapshot(path, revision, setting, weights or DIFFUSERS)


def cast(pipeline: Pipeline, dtype: str) -> Pipeline:
    """The pipeline with UNet and decoder in another dtype, for sampling; the given one stays as it is.

    The text encoder keeps its dtype: it runs once per prompt. Edits of weights are made before, in full
    precision. The decoder of Stable Diffusion XL stays in float32 where half precision overflows in it.
    """
    import torch

    wanted = getattr(torch, dtype)
    changed = {name: getattr(pipeline, name) for name in ("unet", "vae")}
    if pipeline.text_encoder_2 is not None:
        from palimpsest.sampling.sdxl import keeps_float32

        if keeps_float32(pipeline, wanted):
            del changed["vae"]
    # Module.to, because diffusers' own `to` warns about every cast, also where it keeps nothing in float32.
    to = torch.nn.Module.to
    changed = {
        n: to(copy.deepcopy(part), dtype=wanted) for n, part in changed.items() if part.dtype != wanted
    }
    return replace(pipeline, **changed) if changed else pipeline


def _folder(folder: Path, dtype: Any, setting: str, architecture: Architecture) -> dict[str, Any]:
    from diffusers.models import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    kind = architecture_of(folder, setting)
    variants = _check(folder, (*PARTS, *SECOND) if kind == "sdxl" else PARTS)
    check(architecture, kind, folder, setting)
    _quiet()
    parts = {
        "vae": AutoencoderKL.from_pretrained(
            folder / "vae", torch_dtype=dtype, use_safetensors=True, **variants["vae"]
        ),
        "text_encoder": CLIPTextModel.from_pretrained(
            folder / "text_encoder", dtype=dtype, use_safetensors=True, **variants["text_encoder"]
        ),
        "tokenizer": CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        "scheduler": _scheduler(folder / "scheduler"),
    }
    if kind == "sdxl":
        from palimpsest.sampling import sdxl

        return sdxl.completed({**parts, **sdxl.load_parts(folder, dtype, variants)}, folder)
    unet = UNet2DConditionModel.from_pretrained(
        folder / "unet", torch_dtype=dtype, use_safetensors=True, **variants["unet"]
    )
    return {"unet": unet, **parts}


def _check(folder: Path, parts: Sequence[str] = PARTS) -> dict[str, dict[str, str]]:
    """Which weight variant each part has. Raises MissingModel naming all that is missing."""
    missing = [f"{name}/" for name in parts if not (folder / name).is_dir()]
    variants: dict[str, dict[str, str]] = {}
    weights = {**WEIGHTS, **SECOND_WEIGHTS}
    for name, stem in ((name, stem) for name, stem in weights.items() if name in parts):
        # Large files may be split: stem-00001-of-00002.safetensors.
        if list((folder / name).glob(f"{stem}.safetensors")) or list(
            (folder / name).glob(f"{stem}-0*.safetensors")
        ):
            variants[name] = {}
        elif list((folder / name).glob(f"{stem}.fp16*.safetensors")):
            variants[name] = {"variant": "fp16"}
        elif (folder / name).is_dir():
            missing.append(f"{name}/{stem}.safetensors")
    if missing:
        raise MissingModel(
            f"{folder} is no complete Stable Diffusion checkpoint: {', '.join(missing)} missing. Put a "
            f"diffusers folder there, with weights "
            "as safetensors (pickled .bin and .ckpt weights are refused)."
        )
    return variants


def _scheduler(folder: Path) -> Any:
    import json

    import diffusers.schedulers

    config = json.loads((folder / "scheduler_config.json").read_text(encoding="utf-8"))
    kind = getattr(diffusers.schedulers, config.get("_class_name", "PNDMScheduler"), None)
    if kind is None:
        raise ValueError(f"{folder}: {config['_class_name']!r} is no scheduler of this diffusers version")
    return kind.from_config(config)


def _snapshot(path: str, revision: str | None, setting: str, weights: Sequence[str]) -> Path:
    """The cached snapshot of a hub id. Raises MissingModel with the command that fetches it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    at = f" --revision {revision}" if revision else ""
    if not HUB_ID.fullmatch(path) or Path(path).parent.is_dir():
        raise MissingModel(
            f"{setting}: {path} is no folder. Put a checkpoint in diffusers layout there (a whole Stable Diffusion has the parts "
            f"{', '.join(PARTS)}), or give a hub id, or, for a whole one, a .safetensors file."
        )
    try:
        # what the message below asks for; without patterns, a snapshot that lacks other files counts as none
        wanted = ["*.json", "*.txt", *weights]
        return Path(snapshot_download(path, revision=revision, local_files_only=True, allow_patterns=wanted))
    except (LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise MissingModel(
            f"{setting}: {path!r} is neither a folder nor in the local Hugging Face cache. Nothing is downloaded on its own. "
            f"Read the licence on the page of {path} (Stable Diffusion v1: CreativeML OpenRAIL-M), then run "
            f"`hf download {path}{at} --include {' '.join(repr(pattern) for pattern in wanted)}`, or put a diffusers folder in "
            f"a place of your own and set {setting} to it."
        ) from error


def _single_file(path: Path, dtype: Any, setting: str, architecture: Architecture) -> dict[str, Any]:
    """Parts of one file in the original layout; configs and tokenizers come from the folder beside it."""
    configs = path.with_suffix("")
    if not path.is_file():
        raise MissingModel(
            f"{setting}: {path} does not exist. Put the checkpoint (safetensors, original layout) there."
        )
    wanted = (*PARTS, *SECOND) if architecture == "sdxl" else PARTS
    missing = [f"{name}/" for name in wanted if not (configs / name).is_dir()]
    if missing or not (configs / "model_index.json").is_file():
        raise MissingModel(
            f"{path} holds weights only. Put the configs and tokenizer of its diffusers folder "
            f"(model_index.json, {', '.join(wanted)}; no "
            f"weights needed) into {configs}/."
        )
    from palimpsest.sampling.single_file import components

    check(architecture, architecture_of(configs, setting), path, setting)
    _quiet()
    parts = components(path, configs, dtype, wanted)
    if architecture != "sdxl":
        return parts
    from palimpsest.sampling import sdxl

    return sdxl.completed({**parts, **sdxl.of_diffusers(parts, configs)}, configs)


def _quiet() -> None:
    """No progress bars for loading weights: jobs write to log files."""
    from transformers.utils import logging

    logging.disable_progress_bar()
