"""Heads of a multi-headed safety classifier: checked state dicts in safetensors, and the conversion of the released pickles."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palimpsest.detectors.contract import MissingWeights

if TYPE_CHECKING:
    from torch import Tensor, nn

COUNTER = "3.num_batches_tracked"
"""A counter of the batch norm's training, which nothing is computed from."""


def shapes(width: int) -> dict[str, tuple[int, ...]]:
    """Every tensor of a head on features of this width, by its name in the released files."""
    hidden = width // 2
    norm = {f"3.{name}": (hidden,) for name in ("weight", "bias", "running_mean", "running_var")}
    return {
        "0.weight": (hidden, width),
        "0.bias": (hidden,),
        **norm,
        "4.weight": (1, hidden),
        "4.bias": (1,),
    }


def head(width: int) -> nn.Sequential:
    """Linear, ReLU, Dropout, BatchNorm, Linear: the official head without its sigmoid. The norm stands after the ReLU."""
    from torch import nn

    hidden = width // 2
    return nn.Sequential(
        nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm1d(hidden), nn.Linear(hidden, 1)
    )


def checked(tensors: Mapping[str, Tensor], width: int, name: str) -> dict[str, Tensor]:
    """The tensors of one head in float32. Raises ValueError naming what is missing, unknown or of another shape."""
    wanted = shapes(width)
    found = {key: value for key, value in tensors.items() if key != COUNTER}
    missing, unknown = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    other = [
        f"{key} is {tuple(found[key].shape)} instead of {wanted[key]}"
        for key in sorted(wanted.keys() & found.keys())
        if tuple(found[key].shape) != wanted[key]
    ]
    if missing or unknown or other:
        raise ValueError(
            f"head {name!r} does not fit features of width {width}: missing {missing}, unknown {unknown}, shapes {other}. "
            "Heads belong to the CLIP that they were trained on; check detectors.<name>.clip."
        )
    return {key: value.float() for key, value in found.items()}


def load(folder: Path, width: int, setting: str) -> dict[str, nn.Sequential]:
    """Every head of a folder by its file's name, in evaluation mode. Raises MissingWeights or ValueError."""
    from safetensors.torch import load_file

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(path.name for path in folder.glob("*.pt"))
        hint = (
            f"Convert the pickles {pickles} once: `python -m palimpsest.detectors._heads {folder} {folder}-safetensors`."
            if pickles
            else "Put one file <category>.safetensors for each head there."
        )
        raise MissingWeights(f"{setting}: {folder} holds no head (*.safetensors). {hint}")
    found = {}
    for file in files:
        made = head(width)
        state = checked(load_file(file), width, file.stem)
        made.load_state_dict(state, strict=False)
        found[file.stem] = made.eval().requires_grad_(False)
    return found


def save(heads: Mapping[str, nn.Module], folder: Path, about: Mapping[str, Any], half: bool = False) -> None:
    """Write one safetensors file per head and config.json."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    for name, made in heads.items():
        state = {key: value.detach().cpu() for key, value in made.state_dict().items() if key != COUNTER}
        state = {key: (value.half() if half else value.float()).contiguous() for key, value in state.items()}
        save_file(state, folder / f"{name}.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(dict(about), indent=2) + "\n", encoding="utf-8")


def convert(source: str | Path, target: str | Path) -> list[Path]:
    """Rewrite released heads (<category>.pt, state dicts) as safetensors; returns the files written. Only tensors are unpickled.

    Raises MissingWeights without any, ValueError for files that are no heads.
    """
    import torch
    from safetensors.torch import save_file

    source, target = Path(source), Path(target)
    pickles = sorted(source.glob("*.pt"))
    if not pickles:
        raise MissingWeights(f"{source}: no <category>.pt to convert")
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for file in pickles:
        state = torch.load(file, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or "0.weight" not in state:
            raise ValueError(f"{file} is no state dict of a head: 0.weight is missing")
        tensors = checked(state, int(state["0.weight"].shape[1]), file.stem)
        written.append(target / f"{file.stem}.safetensors")
        save_file({key: value.contiguous() for key, value in tensors.items()}, written[-1])
    return written


def main(argv: list[str] | None = None) -> None:
    """Command line: convert the released heads."""
    parser = argparse.ArgumentParser(
        description="Convert heads of a multi-headed safety classifier to safetensors."
    )
    parser.add_argument("source", help="folder with <category>.pt")
    parser.add_argument("target", help="folder to write")
    given = parser.parse_args(argv)
    for file in convert(given.source, given.target):
        print(file)


if __name__ == "__main__":
    main()
