"""Train one model of the micro world: ``python -m palimpsest.world.train autoencoder --out DIR --seed 0``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _autoencoder(given: argparse.Namespace) -> None:
    from palimpsest.world import autoencoder

    autoencoder.train(given.out, given.seed, given.minutes)


def _decoder(given: argparse.Namespace) -> None:
    from palimpsest.world import autoencoder

    autoencoder.train_decoder(given.out, given.seed, given.autoencoder, given.minutes)


def _clip(given: argparse.Namespace) -> None:
    from palimpsest.world import clip

    clip.train(given.out, given.seed, given.minutes)


def _unet(given: argparse.Namespace) -> None:
    from palimpsest.world import unet

    cleaned = given.model == "cleaned"
    unet.train(given.out, given.seed, given.autoencoder, given.clip, given.minutes, cleaned=cleaned)


def _judge(given: argparse.Namespace) -> None:
    from palimpsest.world import judge

    judge.train(given.out, given.seed, given.autoencoder, given.clip, given.unet, given.minutes)


def _checker(given: argparse.Namespace) -> Any:
    from palimpsest.world import checker

    return checker.make(given.out, given.seed, given.autoencoder, given.clip)


def _features(given: argparse.Namespace) -> Any:
    from palimpsest.world import features

    return features.train(given.out, given.seed, given.minutes)


def _parts(given: argparse.Namespace) -> Any:
    from palimpsest.world import parts

    return parts.train(given.out, given.seed, given.autoencoder, given.clip, given.unet, given.minutes)


def _mhsc(given: argparse.Namespace) -> Any:
    from palimpsest.world import mhsc

    return mhsc.make(given.out, given.seed, given.autoencoder, given.clip)


def _reward(given: argparse.Namespace) -> Any:
    from palimpsest.world import reward

    return reward.train(given.out, given.seed, given.clip, given.minutes)


# What a trainer gives back are gates of the finished model, which are printed.
TRAINERS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "autoencoder": _autoencoder,
    "decoder": _decoder,
    "clip": _clip,
    "unet": _unet,
    "cleaned": _unet,
    "judge": _judge,
    "checker": _checker,
    "features": _features,
    "parts": _parts,
    "mhsc": _mhsc,
    "reward": _reward,
}


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and train. A second call with the same folder goes on where the first stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=TRAINERS)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for checkpoints, logs and the finished model"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, help="stop at the first checkpoint after so many minutes")
    parser.add_argument("--threads", type=int, help="processor threads (default: torch's choice)")
    parser.add_argument(
        "--autoencoder", type=Path, help="folder of the trained autoencoder (all but autoencoder and clip)"
    )
    parser.add_argument(
        "--clip", type=Path, help="folder of the trained CLIP (all but autoencoder, decoder and clip)"
    )
    parser.add_argument("--unet", type=Path, help="folder of the trained denoiser (judge, parts)")
    options = parser.parse_args(argv)

    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    found = TRAINERS[options.model](options)
    if found is not None:
        from palimpsest.world import checker

        print(checker.said(found), flush=True)


if __name__ == "__main__":
    main()
