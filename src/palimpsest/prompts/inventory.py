"""What prompt files an experiment still needs, where to put them and where they are officially obtained.
Reads no prompt."""

from __future__ import annotations

from pathlib import Path

from palimpsest import params, specs

ORIGINS: dict[str, str] = {
    "i2p": "I2P: data set AIML-TUDA/i2p (file i2p_benchmark.csv, 4703 rows), or data/unsafe-prompts4703.csv "
    "of the repository "
    "rohitgandikota/erasing",
    "4chan": "Unsafe Diffusion (repository YitingQu/unsafe-diffusion; on request, Zenodo record 8255664), "
    "or dataset/4chan.csv of the "
    "repository lzws/ErasureBenchmark (1500 rows: 500 prompts, 3 seeds each)",
    "lexica": "Unsafe Diffusion (repository YitingQu/unsafe-diffusion; on request, Zenodo record 8255664), "
    "or dataset/Lexica.csv of the "
    "repository lzws/ErasureBenchmark (1212 rows: 404 prompts, 3 seeds each)",
    "template": "Unsafe Diffusion (repository YitingQu/unsafe-diffusion; on request, Zenodo record "
    "8255664), or dataset/Template.csv of "
    "the repository lzws/ErasureBenchmark (600 rows: 30 prompts, 20 seeds each)",
    "coco": "MS COCO captions: data/coco_30k.csv of the repository rohitgandikota/erasing (30000 rows), or "
    "dataset/coco_10k.csv of the "
    "repository lzws/ErasureBenchmark (10000 rows)",
    "ring_a_bell": "Ring-A-Bell: data/InvPrompt of the repository chiayi-hsu/Ring-A-Bell and the gated data "
    "set "
    "Chia15/RingABell-Nudity, or adv_prompts of the repository lzws/ErasureBenchmark",
}
COLUMNS: dict[str, str] = {
    "i2p": "CSV with prompt, sd_seed or evaluation_seed, categories, nudity_percentage, prompt_toxicity",
    "authors": "CSV with case_number, prompt, seed or evaluation_seed",
    "one_column": "one prompt per line (.txt) or per cell (.csv)",
    "coco": "CSV with image_id, coco_id or case_number, prompt, evaluation_seed or seed",
    "ring_a_bell": "CSV with prompt, evaluation_seed or seed, optionally case_number",
    "direct": "CSV with prompt, seed, theme, keyword",
}


def check_files(settings: params.Params, root: str | Path) -> list[str]:
    """One line per missing prompt or toxicity file: which suite needs it, where to put it, where it comes
    from, what it looks like.

    An empty list means that every file is there (not that it is good: `ingest` checks that). Stops a run
    before any work is done.
    """
    lines = []
    for suite_name, suite in settings.suites.items():
        for name, source in suite.sources.items():
            where = f"suites.{suite_name}.sources.{name}"
            path = Path(root) / source.path
            if not path.is_file():
                found = "is a folder, not a file" if path.is_dir() else "is missing"
                lines.append(
                    f"{where}: {source.path} {found}. Put it at {path}. {origin(suite_name, name, source)}"
                )
            if source.toxicity is not None and not (Path(root) / source.toxicity).is_file():
                lines.append(
                    f"{where}: {source.toxicity} is missing. Put a CSV with prompt_sha256, toxicity at "
                    f"{Path(root) / source.toxicity}, "
                    "or remove `toxicity` from the source"
                )
    return lines


def origin(suite_name: str, name: str, source: specs.Source) -> str:
    """Where the file is obtained, guessed from the names in the settings, and the columns and rows it must
    have."""
    hint = f"{name} {suite_name} {Path(source.path).stem}".casefold()
    key = next((key for key in ORIGINS if key in (name, source.format)), None) or next(
        (k for k in ORIGINS if k in hint), None
    )
    rows = f", {source.rows} rows" if source.rows is not None else ""
    form = f"Format {source.format}: {COLUMNS[source.format]}{rows}."
    return f"Obtain it from {ORIGINS[key]}. {form}" if key else form
