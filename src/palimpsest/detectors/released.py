"""The released CLIP-FlanT5 checkpoints (zhiqiulin/clip-flant5-xl and -xxl) as a `ClipFlanT5`.

A checkpoint is a T5 state dict at top level (`shared`, `encoder.*`, `decoder.*`, `lm_head`) with LLaVA's
projector beside it (`mm_projector.0`, `mm_projector.2`). Its vision tower was frozen in training and is
OpenAI's CLIP ViT-L/14 at 336 pixels; its tokenizer is that of FLAN-T5. Facts from
github.com/linzhiqiu/t2v_metrics (clip_t5_model.py, versions up to 3.0).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palimpsest.detectors.contract import MissingWeights

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from palimpsest.detectors.clip_flant5 import ClipFlanT5

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
WRAPPER = SYSTEM + " USER: <image>\n{question} ASSISTANT: "
VISION = "openai/clip-vit-large-patch14-336"
TOKENIZERS = {2048: "google/flan-t5-xl", 4096: "google/flan-t5-xxl"}  # by the width of the T5
PROJECTOR = "mm_projector."
# the input embedding under its other names, and the frozen vision tower that is loaded from its own folder
ALIASES = ("embed_tokens.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
IGNORED = ("vision_tower.",)
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


def load(
    path: str, revision: str | None = None, device: str = "cpu", dtype: torch.dtype | None = None
) -> ClipFlanT5:
    """Load a released checkpoint: a folder, or a hub id whose files are in the local cache. Never downloads.

    The vision tower and the tokenizer are looked for in the folder (`vision_tower/`, `tokenizer/`), then
    in the cache. Raises MissingWeights with what to put where; ValueError for tensors that are missing,
    unknown or of another shape.
    """
    import torch
    from transformers import AutoTokenizer, CLIPVisionModel

    from palimpsest.detectors.clip_flant5 import ClipFlanT5, Settings, projector

    dtype = dtype or torch.float32
    folder = _folder(path, revision)
    config = _config(folder)
    tensors = read_tensors(folder, dtype)
    vision_folder = _companion(folder, "vision_tower", config.get("mm_vision_tower", VISION))
    tokenizer_folder = _companion(folder, "tokenizer", TOKENIZERS.get(config["d_model"], "google/flan-t5-xl"))
    vision = CLIPVisionModel.from_pretrained(
        vision_folder, dtype=dtype, use_safetensors=True, local_files_only=True
    )
    language = _language(config, {k: v for k, v in tensors.items() if not k.startswith(PROJECTOR)})
    project = projector(vision.config.hidden_size, config["d_model"]).to(dtype)
    _fill(
        project,
        {k.removeprefix(PROJECTOR): v for k, v in tensors.items() if k.startswith(PROJECTOR)},
        PROJECTOR,
    )
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, local_files_only=True)
    settings = Settings(
        wrapper=WRAPPER,
        image_size=vision.config.image_size,
        hidden_state=config.get("mm_vision_select_layer", -2),
    )
    judge = ClipFlanT5(vision, project, language, tokenizer, settings)
    return judge.to(device).eval().requires_grad_(False)


def read_tensors(folder: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """All tensors of T5 and projector under their canonical names, in `dtype`, from one or several
    safetensors files.
    """
    from safetensors import safe_open

    tensors: dict[str, Tensor] = {}
    for shard in _shards(folder):
        with safe_open(shard, "pt") as handle:
            for name in handle.keys():  # noqa: SIM118 - safe_open is no mapping
                if name.startswith(IGNORED):
                    continue
                canonical = "shared.weight" if name in ALIASES else name
                if canonical not in tensors:
                    tensors[canonical] = handle.get_tensor(name).to(dtype)
    return tensors


def convert(source: str | Path, target: str | Path) -> list[Path]:
    """Rewrite a checkpoint of pickled shards (pytorch_model*.bin) as safetensors shards; returns the files
    written.

    Only its tensors are read (`weights_only=True`).
    """
    import torch
    from safetensors.torch import save_file

    source, target = Path(source), Path(target)
    shards = sorted(source.glob("pytorch_model*.bin"))
    if not shards:
        raise MissingWeights(f"{source}: no pytorch_model*.bin to convert")
    target.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}
    written = []
    for number, shard in enumerate(shards, start=1):
        state = torch.load(shard, map_location="cpu", weights_only=True, mmap=True)
        keep = {k: v for k, v in state.items() if not k.startswith(IGNORED)}
        if "shared.weight" in keep:
            keep = {k: v for k, v in keep.items() if k not in ALIASES}
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({k: v.clone().contiguous() for k, v in keep.items()}, target / name)
        weight_map |= dict.fromkeys(keep, name)
        written.append(target / name)
    (target / INDEX).write_text(json.dumps({"weight_map": weight_map}, indent=1) + "\n", encoding="utf-8")
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    return written


def _language(config: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    """A T5 around `tensors`, without a second copy of them in memory.

    FLAN-T5 has an output layer of its own and does not scale the decoder's output. transformers 5 reads
    the latter from `tie_word_embeddings: false` and then calls every T5 tied, so `tie_weights` must not be
    called: it would replace the output layer.
    """
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    known = {
        k: v
        for k, v in config.items()
        if not k.startswith(("mm_", "_")) and k not in ("architectures", "model_type")
    }
    with torch.device("meta"):
        language = T5ForConditionalGeneration(T5Config(**{"tie_word_embeddings": False} | known))
    shared = tensors.get("shared.weight")
    if shared is None:
        raise ValueError("the checkpoint holds no input embedding (shared.weight)")
    copies = dict.fromkeys(ALIASES[1:], shared)
    _fill(language, tensors | copies, "")
    return language


def _fill(module: Any, tensors: dict[str, Tensor], prefix: str) -> None:
    """Put `tensors` into `module`, all of them and nothing else. Raises ValueError naming what differs."""
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    missing = sorted(prefix + name for name in expected.keys() - found.keys())
    unknown = sorted(prefix + name for name in found.keys() - expected.keys())
    shapes = [
        f"{prefix}{name} is {found[name]} instead of {expected[name]}"
        for name in sorted(expected.keys() & found.keys())
        if expected[name] != found[name]
    ]
    if missing or unknown or shapes:
        raise ValueError(
            f"this is no CLIP-FlanT5 checkpoint: {len(missing)} tensors missing {missing[:5]}, "
            f"{len(unknown)} unknown {unknown[:5]}, shapes {shapes[:5]}. Download the files again "
            "and compare their sizes."
        )
    module.load_state_dict(tensors, assign=True)


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        raise MissingWeights(
            f"{file} is missing; a released CLIP-FlanT5 folder holds config.json and {INDEX} with its shards"
        )
    config = json.loads(file.read_text(encoding="utf-8"))
    if config.get("mm_projector_type", "mlp2x_gelu") != "mlp2x_gelu" or "d_model" not in config:
        raise ValueError(
            f"{file}: not a CLIP-FlanT5 configuration "
            f"(mm_projector_type={config.get('mm_projector_type')!r}, allowed: 'mlp2x_gelu'; "
            f"d_model={config.get('d_model')!r})"
        )
    return config


def _shards(folder: Path) -> Iterator[Path]:
    if (folder / INDEX).is_file():
        names = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        absent = [name for name in names if not (folder / name).is_file()]
        if absent:
            raise MissingWeights(f"{folder}: {len(absent)} of {len(names)} shards are missing: {absent}")
        yield from (folder / name for name in names)
    elif (folder / SINGLE).is_file():
        yield folder / SINGLE
    elif any(folder.glob("*.bin")):
        raise MissingWeights(
            f"{folder} holds pickled weights (.bin), which are never loaded here. Convert them once: "
            f"`python -m palimpsest.detectors.released {folder} {folder}-safetensors`, then set "
            "the detector's path to the new folder."
        )
    else:
        raise MissingWeights(f"{folder} holds neither {INDEX} nor {SINGLE}")


def _folder(path: str, revision: str | None) -> Path:
    """The local folder of a path or cached hub id."""
    if Path(path).is_dir():
        return Path(path)
    cached = _cached(path, revision)
    if cached is None:
        at = f" --revision {revision}" if revision else ""
        raise MissingWeights(
            f"detector weights {path!r} are neither a folder nor in the local hub cache. Fetch "
            f"them with `hf download {path}{at}`, or put "
            f"config.json, {INDEX} and its shards into a folder and set `detectors.<name>.path` to it."
        )
    return cached


def _companion(folder: Path, name: str, hub_id: str) -> Path:
    """The folder of the vision tower or tokenizer: inside the checkpoint's folder, or the cached hub id."""
    if (folder / name).is_dir():
        return folder / name
    cached = _cached(hub_id, None)
    if cached is None:
        raise MissingWeights(
            f"CLIP-FlanT5 also needs {hub_id!r}, which is not in the local hub cache. Fetch it "
            f"with `hf download {hub_id}`, "
            f"or put its files into {folder / name}."
        )
    return cached


def _cached(hub_id: str, revision: str | None) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def main() -> None:
    """Command line: convert pickled shards to safetensors."""
    parser = argparse.ArgumentParser(description=convert.__doc__)
    parser.add_argument("source", help="folder with config.json and pytorch_model*.bin")
    parser.add_argument("target", help="folder to write")
    given = parser.parse_args()
    for file in convert(given.source, given.target):
        print(file)


if __name__ == "__main__":
    main()
