"""Train one model of the micro world: ``python -m palimpsest.world.train autoencoder --out DIR --seed 0``."""

from __future__ import annotations

import argparse
from pathlib import Path

MODELS = (
    "autoencoder",
    "decoder",
    "clip",
    "unet",
    "cleaned",
    "judge",
    "checker",
    "features",
    "parts",
    "mhsc",
    "reward",
)


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and train. A second call with the same folder goes on where the first stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=MODELS)
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
    if options.model == "autoencoder":
        from palimpsest.world import autoencoder

        autoencoder.train(options.out, options.seed, options.minutes)
    elif options.model == "decoder":
        from palimpsest.world import autoencoder

        autoencoder.train_decoder(options.out, options.seed, options.autoencoder, options.minutes)
    elif options.model == "clip":
        from palimpsest.world import clip

        clip.train(options.out, options.seed, options.minutes)
    elif options.model in ("unet", "cleaned"):
        from palimpsest.world import unet

        cleaned = options.model == "cleaned"
        unet.train(
            options.out, options.seed, options.autoencoder, options.clip, options.minutes, cleaned=cleaned
        )
    elif options.model == "judge":
        from palimpsest.world import judge

        judge.train(
            options.out, options.seed, options.autoencoder, options.clip, options.unet, options.minutes
        )
    elif options.model == "checker":
        from palimpsest.world import checker

        print(
            checker.said(checker.make(options.out, options.seed, options.autoencoder, options.clip)),
            flush=True,
        )
    elif options.model == "features":
        from palimpsest.world import checker, features

        print(checker.said(features.train(options.out, options.seed, options.minutes)), flush=True)
    elif options.model == "parts":
        from palimpsest.world import checker, parts

        gates = parts.train(
            options.out, options.seed, options.autoencoder, options.clip, options.unet, options.minutes
        )
        print(checker.said(gates), flush=True)
    elif options.model == "mhsc":
        from palimpsest.world import checker, mhsc

        gates = mhsc.make(options.out, options.seed, options.autoencoder, options.clip)
        print(checker.said(gates), flush=True)
    elif options.model == "reward":
        from palimpsest.world import checker, reward

        print(
            checker.said(reward.train(options.out, options.seed, options.clip, options.minutes)), flush=True
        )


if __name__ == "__main__":
    main()
