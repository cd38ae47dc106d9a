"""Rewrite released weights of quality measures, which are pickles, as safetensors. Only tensors are read (`weights_only=True`).

    python -m palimpsest.metrics.convert inception pt_inception-2015-12-05-6726825d.pth --out models/quality/inception.safetensors
    python -m palimpsest.metrics.convert lpips alexnet-owt-7be5be79.pth alex.pth --out models/quality/lpips-alex.safetensors
    python -m palimpsest.metrics.convert image_reward ImageReward.pt --out models/quality/image-reward.safetensors

`alex.pth` (and `vgg.pth`) are the linear weights inside the lpips 0.1.4 package. What is written is checked against the network first.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palimpsest import store

if TYPE_CHECKING:
    import torch

KINDS = ("inception", "lpips", "image_reward")


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a pickled state dict. Raises FileNotFoundError, and ValueError when it holds anything but tensors by name."""
    import torch

    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; download it first (see `--help`)")
    state: Any = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(
            f"{path} is no state dict of tensors by name; give the file that was released as weights"
        )
    return state


def convert(kind: str, sources: Sequence[Path], target: Path, network: str = "alex") -> list[str]:
    """Write the tensors that a measure reads into one safetensors file; returns their names. Raises ValueError for other weights."""
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    for source in sources:
        tensors |= tensors_of(source)
    if kind == "inception":
        from palimpsest.metrics._inception_network import state_of as inception_state

        kept = list(inception_state(tensors))
    elif kind == "lpips":
        from palimpsest.metrics._lpips_network import state_of as lpips_state

        lpips_state(tensors, network)
        kept = [name for name in tensors if name.startswith(("features.", "lin"))]
    elif kind == "image_reward":
        from palimpsest.metrics._blip_reward import state_of as reward_state

        kept = list(tensors)
        reward_state(tensors)
    else:
        raise ValueError(f"there are no weights of kind {kind!r}; allowed: {list(KINDS)}")
    names = [name for name in kept if name in tensors]
    with store.atomic(target) as part:
        save_file({name: tensors[name].clone().contiguous() for name in names}, part)
    return names


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument(
        "sources",
        nargs="+",
        type=Path,
        help="released files; lpips takes the backbone and the linear weights",
    )
    parser.add_argument("--out", type=Path, required=True, help="the safetensors file to write")
    parser.add_argument("--network", choices=("alex", "vgg"), default="alex", help="backbone of lpips")
    options = parser.parse_args(argv)
    names = convert(options.kind, options.sources, options.out, options.network)
    print(f"wrote {len(names)} tensors to {options.out}")


if __name__ == "__main__":
    main()
