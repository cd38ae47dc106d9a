"""Put the trained parts together as the checkpoint folders the project reads: ``models/micro``."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

BUDGET_MB = 40.0
STABLE_DIFFUSION, CLIP, JUDGE = "stable-diffusion", "clip", "vqa"
CLEANED, CHECKER, FEATURES = "cleaned", "safety-checker", "features"
PARTS, HEADS, REWARD = "parts", "mhsc", "reward"
FOLDERS = (STABLE_DIFFUSION, CLIP, JUDGE, CLEANED, CHECKER, FEATURES, PARTS, HEADS, REWARD)


def assemble_pipeline(autoencoder: Path, clip_folder: Path, unet: Path, target: Path) -> None:
    """Write a diffusers folder in float16 that ``StableDiffusionPipeline.from_pretrained`` loads unchanged."""
    import torch
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    from palimpsest.world import tokenizer as bpe
    from palimpsest.world.unet import solver

    tokenizer = CLIPTokenizer.from_pretrained(clip_folder)
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(autoencoder),
        text_encoder=CLIPTextModel.from_pretrained(clip_folder),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel.from_pretrained(unet),
        scheduler=solver(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(target, safe_serialization=True)
    bpe.save(tokenizer, target / "tokenizer")
    load_as_float32(target / "text_encoder")
    for part in ("unet", "vae"):
        forget_origin(target / part)


def load_as_float32(folder: Path) -> None:
    """Make transformers load the float16 weights of ``folder`` as float32 unless told otherwise, as diffusers does.

    Left alone, the two libraries disagree about the default and the pipeline mixes number formats.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for part in (config, config.get("text_config"), config.get("vision_config")):
        if part is not None:
            part["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def forget_origin(folder: Path) -> None:
    """Take the folder that a model was loaded from out of its config.json: it is a path of one machine."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.pop("_name_or_path", None) is not None:
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def assemble_clip(clip_folder: Path, target: Path) -> None:
    """Write the whole CLIP in float16."""
    import torch
    from transformers import CLIPModel, CLIPTokenizer

    from palimpsest.world import clip

    model = CLIPModel.from_pretrained(clip_folder, dtype=torch.float16)
    clip.save(model, CLIPTokenizer.from_pretrained(clip_folder), target)
    load_as_float32(target)


def assemble_judge(judge: Path, target: Path) -> None:
    """Write the judge in float16."""
    import torch

    from palimpsest.detectors.clip_flant5 import LANGUAGE, VISION, ClipFlanT5

    ClipFlanT5.load(judge, dtype=torch.float16).save(target)
    load_as_float32(target / VISION)
    load_as_float32(target / LANGUAGE)


def assemble_cleaned(unet: Path, target: Path) -> None:
    """Write the denoiser that never saw a theme in float16, alone: its other parts are those of the Stable Diffusion folder."""
    import torch
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel.from_pretrained(unet, torch_dtype=torch.float16)
    model.save_pretrained(target / "unet", safe_serialization=True)
    forget_origin(target / "unet")


def megabytes(folder: Path) -> float:
    """Size of all files under ``folder`` in MB (10^6 bytes)."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def assemble(build: Path, target: Path) -> dict[str, float]:
    """From ``build/{decoder,clip,unet,judge,cleaned,checker,features,parts,mhsc,reward}`` to ``target``; returns the sizes in MB.

    Raises ``ValueError`` above the budget of 40 MB and ``FileNotFoundError`` naming the part that is not made yet.
    """
    parts = {
        "decoder": build / "decoder" / "vae",
        "clip": build / "clip" / "clip",
        "unet": build / "unet" / "unet",
        "judge": build / "judge" / "vqa",
        "cleaned": build / "cleaned" / "unet",
        "checker": build / "checker" / CHECKER,
        "features": build / "features" / FEATURES,
        "parts": build / "parts" / PARTS,
        "mhsc": build / "mhsc" / HEADS,
        "reward": build / "reward" / REWARD,
    }
    for name, path in parts.items():
        if not path.is_dir():
            command = f"python -m palimpsest.world.train {name}"
            raise FileNotFoundError(
                f"{path} is missing: make it with `{command} --out {build / name}` or `snakemake world`"
            )
    for name in FOLDERS:
        shutil.rmtree(target / name, ignore_errors=True)
    assemble_pipeline(parts["decoder"], parts["clip"], parts["unet"], target / STABLE_DIFFUSION)
    assemble_clip(parts["clip"], target / CLIP)
    assemble_judge(parts["judge"], target / JUDGE)
    assemble_cleaned(parts["cleaned"], target / CLEANED)
    small = {"checker": CHECKER, "features": FEATURES, "parts": PARTS, "mhsc": HEADS, "reward": REWARD}
    for name, folder in small.items():
        shutil.copytree(parts[name], target / folder)
    sizes = {name: round(megabytes(target / name), 2) for name in FOLDERS}
    if sum(sizes.values()) > BUDGET_MB:
        raise ValueError(f"{target} holds {sum(sizes.values()):.1f} MB, more than {BUDGET_MB} MB: {sizes}")
    return sizes


def main(argv: list[str] | None = None) -> None:
    """Command line: ``python -m palimpsest.world.assemble --build models/world-build --target models/micro``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=Path, required=True)
    parser.add_argument("--target", type=Path, required=True)
    options = parser.parse_args(argv)
    print(json.dumps(assemble(options.build, options.target)))


if __name__ == "__main__":
    main()
