"""How far SPM's gates open: the likeness of an experiment's prompts to the keywords of its themes, by suite.

    python benchmarks/gates.py
    python benchmarks/gates.py --params params.yaml experiments/paper.yaml --matching clipcos

Needs the text encoder only. For every theme, and for all themes together, the gate of one set of branches for all
keywords (the largest likeness): mean and quantiles over the prompts of every suite, and the mean of its square, which
is what the official code scales the branches by. The last line printed is JSON."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from palimpsest.methods import _gates
from palimpsest.params import load
from palimpsest.prompts.ingest import ingest
from palimpsest.sampling.embeddings import encode
from palimpsest.sampling.load import load_pipeline
from palimpsest.sampling.noise import image_seed


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--params", nargs="+", default=["params.yaml"], help="files, each laid over the last")
    parser.add_argument(
        "--matching", default="clipcos_tokenuni", choices=["clipcos_tokenuni", "clipcos", "tokenuni"]
    )
    return parser.parse_args()


def main() -> None:
    given = arguments()
    params = load(*given.params)
    pipeline = load_pipeline(params.model)
    keywords = {name: list(theme.detailed) for name, theme in params.themes.items()}
    keywords["all"] = list(dict.fromkeys(word for words in keywords.values() for word in words))

    def known(texts: list[str]) -> tuple[list[set[int]], torch.Tensor]:
        return _gates.token_sets(pipeline.tokenizer, texts), encode(pipeline, texts)

    sides = {theme: known(words) for theme, words in keywords.items()}
    found = []
    for suite_name, suite in params.suites.items():
        frame = ingest(suite_name, suite, params.seed, Path("."), image_seed=image_seed)[0].filter(gate="ok")
        prompts = known(list(dict.fromkeys(frame["prompt"].to_list())))
        for theme, words in sides.items():
            gates = _gates.likeness(prompts, words, given.matching).amax(1)
            low, middle, high = gates.quantile(torch.tensor([0.05, 0.5, 0.95])).tolist()
            row = {
                "mean": gates.mean(),
                "q05": low,
                "q50": middle,
                "q95": high,
                "square": gates.square().mean(),
            }
            row = {name: round(float(value), 3) for name, value in row.items()}
            found.append({"suite": suite_name, "theme": theme, "prompts": len(gates), **row})
            print(
                f"{suite_name} {theme}: {len(gates)} prompts, gate {row['mean']:.2f} "
                f"[{row['q05']:.2f}, {row['q95']:.2f}], median {row['q50']:.2f}, squared {row['square']:.2f}"
            )
    print(json.dumps({"matching": given.matching, "rows": found}))


if __name__ == "__main__":
    main()
