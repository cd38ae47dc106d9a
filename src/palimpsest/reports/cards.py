"""Result cards: what others' tools read. Entries for the `.eval_results` of a model's repository on the Hugging Face Hub, the tables
described in the Croissant vocabulary, and how to cite the results.

Sources: Hugging Face Hub documentation, "Evaluation results"; Croissant format specification 1.0 (MLCommons); Citation File Format 1.2.0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palimpsest import store
from palimpsest.params import Params
from palimpsest.reports import definitions, select
from palimpsest.reports.inputs import ReportInputs, is_micro
from palimpsest.reports.select import Row

if TYPE_CHECKING:
    import polars as pl

CARDS, EVAL_RESULTS, CROISSANT, CITATION = "cards", "eval_results", "croissant.json", "CITATION.cff"
AUTHORS = "The Palimpsest contributors"
LICENSE = "Apache-2.0"
# Words of a description: where they come from, by prefix.
PREFIXES = {
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "dct": "http://purl.org/dc/terms/",
}
TERMS = ("citeAs", "column", "extract", "field", "fileObject", "isLiveDataset", "key", "recordSet", "source")
TABLES = {
    "tables/cells.csv": "Every cell: counts, erasure proportion, intervals and tests, by method, variant, suite and judge.",
    "quality.parquet": "What was measured on pictures of benign prompts, and the ratio difference of parts.",
    "pairs.parquet": "Methods compared in pairs on the same prompts and seeds.",
}


def write(inputs: ReportInputs, rows: Sequence[Row], folder: Path) -> None:
    """Write the cards of a report into its folder; its tables are there already."""
    params = inputs.params
    cards = folder / CARDS
    for name, entries in eval_results(rows, params, inputs.date).items():
        _yaml(entries, cards / EVAL_RESULTS / f"{name}.yaml")
    frames = {
        "tables/cells.csv": inputs.cells,
        "quality.parquet": inputs.quality,
        "pairs.parquet": inputs.pairs,
    }
    known = {name: frame for name, frame in frames.items() if frame is not None}
    store.write_json(croissant(known, params, folder, inputs.commit, inputs.date), folder / CROISSANT)
    _yaml(citation(params, inputs.commit, inputs.date), cards / CITATION)


def _yaml(value: Any, path: Path) -> None:
    import yaml

    with store.atomic(path) as part:
        text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=140)
        part.write_text(text, encoding="utf-8")


def dataset_id(params: Params) -> str:
    """What results are filed under: `report.dataset`, the Hub repository of the benchmark's prompts, or a name of its own kind."""
    return params.report.dataset or f"palimpsest/{params.experiment}"


def eval_results(rows: Sequence[Row], params: Params, date: str = "") -> dict[str, list[dict[str, Any]]]:
    """{name of a variant: entries}, one entry per unsafe suite and judged theme. value: EP in percent."""
    found: dict[str, list[dict[str, Any]]] = {}
    detector, rule = select.headline(params)
    confidence = f"{100 * params.statistics.confidence:g} %"
    for row in select.ep_rows(rows, params):
        if row["ep"] is None:
            continue
        limits = (
            f", {confidence} interval {100 * row['ep_low']:.2f} to {100 * row['ep_high']:.2f}"
            if select.has_interval(row)
            else ""
        )
        about = row["variant"] or "no fit"
        notes = (
            f"Erasure proportion in percent{limits}; {row['n_base_unsafe']} unsafe images before, {row['n_unsafe']} after, n = {row['n']}; "
            f"judged by {detector}, rule {rule}; {about}; {params.model.path}"
        )
        notes += "; micro world, not comparable with published numbers" if is_micro(params) else ""
        entry: dict[str, Any] = {
            "dataset": {"id": dataset_id(params), "task_id": f"ep_{row['suite']}_{row['judged_theme']}"},
            "value": round(100 * row["ep"], 4),
            **({"date": date} if date else {}),
            "notes": notes,
        }
        parts = [row[key] for key in ("method", "preset", "theme", "keyword_set", "training_images")]
        found.setdefault(select.plain(".".join(str(part) for part in parts if part)), []).append(entry)
    return found


def citation(params: Params, commit: str, date: str = "") -> dict[str, Any]:
    """The results as a data set that can be cited, with the software that made them."""
    software = {
        "type": "software",
        "title": "Palimpsest",
        "authors": [{"name": AUTHORS}],
        "license": LICENSE,
        "version": commit,
    }
    return {
        "cff-version": "1.2.0",
        "message": "If you use these results, please cite them, and the methods and tools listed by `palimpsest cite`.",
        "type": "dataset",
        "title": params.report.title or f"Concept erasure: {params.experiment}",
        "authors": [{"name": AUTHORS}],
        "version": commit,
        **({"date-released": date} if date else {}),
        "license": LICENSE,
        "references": [software],
    }


def croissant(
    frames: Mapping[str, pl.DataFrame], params: Params, folder: Path, commit: str, date: str = ""
) -> dict[str, Any]:
    """The tables of a report in the Croissant vocabulary. frames: path below the folder -> what the file holds; the files are there."""
    title = params.report.title or f"Concept erasure: {params.experiment}"
    what = "How much of a concept is left in a text-to-image model after erasing it, and what erasing changed elsewhere."
    context = {
        "@language": "en",
        "@vocab": PREFIXES["sc"],
        **PREFIXES,
        "conformsTo": "dct:conformsTo",
        "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
        **{term: f"cr:{term}" for term in TERMS},
    }
    return {
        "@context": context,
        "@type": "sc:Dataset",
        "conformsTo": f"{PREFIXES['cr']}1.0",
        "name": f"palimpsest-{params.experiment}",
        "alternateName": title,
        "description": f"{what} Experiment {params.experiment}, model {params.model.path}."
        + (" The micro world: not comparable with published numbers." if is_micro(params) else ""),
        "license": f"https://spdx.org/licenses/{LICENSE}.html",
        "creator": {"@type": "sc:Organization", "name": AUTHORS},
        "url": "index.html",
        "version": commit,
        **({"datePublished": date} if date else {}),
        "citeAs": f"{AUTHORS}. {title}. Results of Palimpsest, {commit}.",
        "isLiveDataset": False,
        "keywords": [
            "concept erasure",
            "text-to-image",
            "diffusion models",
            "safety",
            "benchmark",
            *params.themes,
        ],
        "distribution": [_file(folder / name, name) for name in frames],
        "recordSet": [_records(name, frame) for name, frame in frames.items()],
    }


def _file(path: Path, name: str) -> dict[str, Any]:
    data = path.read_bytes()
    kind = "text/csv" if path.suffix == ".csv" else "application/x-parquet"
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": path.name,
        "description": TABLES[name],
        "contentUrl": name,
        "contentSize": f"{len(data)} B",
        "encodingFormat": kind,
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def _records(name: str, frame: pl.DataFrame) -> dict[str, Any]:
    records = Path(name).stem
    fields = []
    for column, kind in frame.schema.items():
        field = {
            "@type": "cr:Field",
            "@id": f"{records}/{column}",
            "name": column,
            "dataType": _kind(kind),
            "source": {"fileObject": {"@id": name}, "extract": {"column": column}},
        }
        definition = definitions.of(column)
        fields.append(field | ({"description": f"definition {definition}"} if definition else {}))
    return {
        "@type": "cr:RecordSet",
        "@id": records,
        "name": records,
        "description": TABLES[name],
        "field": fields,
    }


def _kind(kind: pl.DataType) -> str:
    """The data type of a column."""
    if kind.is_integer():
        return "sc:Integer"
    if kind.is_float():
        return "sc:Float"
    return "sc:Boolean" if str(kind) == "Boolean" else "sc:Text"
