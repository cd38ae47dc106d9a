"""The command `palimpsest`: help around the pipeline. The pipeline itself is run by `snakemake`.

Every command imports what it needs when it runs, so that `palimpsest --help` and shell completion stay fast.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from palimpsest.cli import annotate
from palimpsest.cli.common import SETTINGS, Overlays, load_plan, load_settings, stop

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
)
app.add_typer(annotate.app, name="annotate")


@app.callback()
def palimpsest() -> None:
    """Measure concept erasure in text-to-image diffusion models. `snakemake` runs the experiment; these commands help around it."""


@app.command()
def doctor(config: Overlays = None) -> None:
    """Check that a run can work here: libraries, disk, memory, GPU, files of the experiment, locks and leftovers, remote and cache."""
    from palimpsest.cli.doctor import examine
    from palimpsest.findings import FAIL

    checks = examine(Path(SETTINGS), config or [])
    for check in checks:
        typer.echo(f"{check.level:<5} {check.subject}: {check.found}")
        if check.remedy:
            typer.echo(f"      -> {check.remedy}")
    bad = sum(check.level == FAIL for check in checks)
    if bad:
        stop(f"{bad} problem(s) would stop a run.")
    typer.echo("A run can start: snakemake")


@app.command()
def explain(
    cell: Annotated[
        str,
        typer.Argument(
            help="A path, the beginning of a key, or a place such as uce/diffusers2025/uncased.detailed/nsfw."
        ),
    ],
    config: Overlays = None,
) -> None:
    """Show what decides a cell's result, and in what it differs from older artifacts at the same place."""
    from palimpsest.cli.explain import NoSuchCell, explanation, find

    plan = load_plan(config)
    try:
        typer.echo("\n".join(explanation(plan, find(plan, cell))))
    except NoSuchCell as error:
        stop(str(error))


@app.command("new-method")
def new_method(
    name: Annotated[
        str, typer.Argument(help="Lower case letters, digits and underscores, such as my_method.")
    ],
) -> None:
    """Write a method that runs at once: module, settings and page, to change into your own."""
    from palimpsest.cli.new_method import BadName, write

    try:
        written = write(name, Path("."))
    except BadName as error:
        stop(str(error))
    typer.echo("".join(f"wrote {path}\n" for path in written))
    typer.echo("It already works. See what would run, run it, and test it:")
    typer.echo(f"  snakemake -n\n  snakemake\n  pytest tests/contract -k {name}")


@app.command()
def cite(
    experiment: Annotated[
        str | None,
        typer.Argument(help="A file of experiments/, without .yaml; params.yaml alone when left out."),
    ] = None,
) -> None:
    """Print BibTeX entries of every method an experiment uses, its judge, and the tools."""
    from palimpsest.cli.cite import entries

    overlays = None
    if experiment is not None and experiment != load_settings(None).experiment:
        path = Path("experiments") / f"{experiment}.yaml"
        if not path.is_file():
            known = sorted(p.stem for p in Path("experiments").glob("*.yaml"))
            stop(f"there is no {path}; allowed: {[load_settings(None).experiment, *known]}")
        overlays = [path]
    typer.echo("\n\n".join(entries(load_plan(overlays))))


@app.command("concise-sets")
def concise_sets(
    matrix: Annotated[
        Path, typer.Argument(help="CSV: one row per erased keyword, one column per prompted keyword.")
    ],
    threshold: Annotated[
        float, typer.Option(help="Least suppression, in percent, that counts as covering.")
    ] = 50.0,
) -> None:
    """Derive the concise keyword sets of a cross-suppression matrix, and say what covers what."""
    from palimpsest.keywords.concise import main_table

    try:
        typer.echo(main_table(matrix, threshold))
    except (OSError, ValueError) as error:
        stop(str(error))


@app.command()
def validate(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Overlays or method files; all of them when left out.")
    ] = None,
) -> None:
    """Check settings files whole, and print every problem with what is allowed."""
    from palimpsest.cli.validate import check, everything

    if not Path(SETTINGS).is_file():
        stop(
            f"there is no {SETTINGS} in {Path.cwd()}; run this in the project folder (where the Snakefile is)"
        )
    bad = 0
    for path in files or everything(Path(".")):
        problems = check(path, Path("."))
        bad += bool(problems)
        typer.echo(f"{path}: {'ok' if not problems else ''}".rstrip())
        for problem in problems:
            typer.echo(f"  {problem}")
    if bad:
        stop(f"{bad} file(s) cannot be used.")


@app.command()
def share(
    config: Overlays = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Also delete artifacts that no experiment of this project names.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Bring damaged artifacts back, or delete those never shared.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", "-n", help="Check everything, change nothing, say what would be done."),
    ] = False,
) -> None:
    """Check every artifact, let DVC track what is new, and say what to commit and push."""
    from palimpsest import sharing
    from palimpsest.cli.share import listed, next_steps, other_plans, summary
    from palimpsest.params import BadSettings
    from palimpsest.tracked import DvcFailed

    plan, root = load_plan(config), Path(".")
    try:
        if repair:
            brought, deleted = sharing.repair(plan)
            lines = listed("brought back as shared:", brought)
            lines += listed("deleted (`snakemake` makes them again):", deleted)
            typer.echo("\n".join(lines or ["Every artifact is whole."]))
            return
        done = sharing.share(plan, lambda: other_plans(Path(SETTINGS), root), prune, dry_run)
    except (sharing.Refused, DvcFailed, BadSettings) as error:
        stop(str(error))
    lines = summary(done, dry_run)
    lines += [] if dry_run else next_steps(root, plan.params.experiment)
    typer.echo("\n".join(lines))


@app.command()
def estimate(
    experiment: Annotated[
        str | None,
        typer.Argument(
            help="A file such as experiments/paper.yaml, or its name; params.yaml alone when left out."
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="A chip: h200, h100, a100, l40s, rtx4090, ...; that of this machine when left out, else h200."
        ),
    ] = None,
    calibrate: Annotated[
        float | None, typer.Option(help="Measure this machine instead, for about this many seconds.", min=1)
    ] = None,
    save: Annotated[
        bool, typer.Option("--save", help="Keep what --calibrate measured in benchmarks/rates/.")
    ] = False,
    remaining: Annotated[bool, typer.Option("--remaining", help="Only what is not made yet.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Reckon what an experiment takes before it is run: jobs, images, evaluations, hours, disk, downloads and licences."""
    from palimpsest.cli.estimate import chosen, overlay, report
    from palimpsest.estimate.chips import UnknownChip

    try:
        laid = overlay(experiment) if experiment else None
        plan = load_plan([laid] if laid else None)
        chip = chosen(plan, device, calibrate, save)
    except (FileNotFoundError, UnknownChip) as error:
        stop(str(error))
    typer.echo(report(plan, chip, remaining, as_json))


@app.command()
def download(
    experiment: Annotated[
        str | None,
        typer.Argument(
            help="A file such as experiments/paper.yaml, or its name; params.yaml alone when left out."
        ),
    ] = None,
    accept: Annotated[
        bool, typer.Option("--accept", help="You have read the licences that are listed, and accept them.")
    ] = False,
    only: Annotated[str, typer.Option(help="Only repositories whose name holds this.")] = "",
) -> None:
    """Fetch the weights that an experiment reads from the hub, going on after breaks; without --accept list them with their licences."""
    from palimpsest.cli.download import Refused, run
    from palimpsest.cli.estimate import overlay

    try:
        laid = overlay(experiment) if experiment else None
        run(load_plan([laid] if laid else None), experiment or "", only, accept, typer.echo)
    except (FileNotFoundError, Refused) as error:
        stop(str(error))


@app.command("external-template")
def external_template(
    suites: Annotated[
        list[str] | None, typer.Argument(help="Prompt suites of the experiment; all of them when left out.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Where to write it; a file that exists is never touched.")
    ] = Path("data/external/manifest/manifest.csv"),
    config: Overlays = None,
) -> None:
    """Write the manifest that another lab or a service's user fills in: every prompt to make an image of, with its image id."""
    from palimpsest.cli.external import Refused, write

    try:
        lines = write(load_settings(config), suites or [], out, Path("."))
    except Refused as error:
        stop(str(error))
    typer.echo("\n".join(lines))


@app.command()
def conclude(
    folder: Annotated[
        Path,
        typer.Argument(
            help="The report of an experiment (reports/micro), or published tables (data/reference)."
        ),
    ],
    words: Annotated[
        bool, typer.Option("--words", help="Sentences instead of JSON, without their evidence.")
    ] = False,
) -> None:
    """Derive levels, guidance and takeaways from a folder of results, by the rules of docs/conclusions.md, as JSON."""
    import json

    from palimpsest.cli.conclude import concluded, sentences
    from palimpsest.store import CorruptArtifact

    try:
        found = concluded(folder)
    except (FileNotFoundError, CorruptArtifact) as error:
        stop(str(error))
    typer.echo("\n".join(sentences(found)) if words else json.dumps(found, indent=1, ensure_ascii=False))


@app.command()
def compare(
    a: Annotated[
        str, typer.Argument(help="A method: its label, or method/preset, or method/preset/theme.variant.")
    ],
    b: Annotated[str, typer.Argument(help="Another one.")],
    folder: Annotated[
        Path, typer.Option("--results", "-r", help="The report of an experiment, or published tables.")
    ] = Path("reports/micro"),
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Put two methods of an experiment side by side: paired differences of EP, benign prompts, cost."""
    import json

    from palimpsest.cli.conclude import NoSuchMethod, compared, in_words, load
    from palimpsest.store import CorruptArtifact

    try:
        found = compared(load(folder), a, b)
    except (FileNotFoundError, CorruptArtifact, NoSuchMethod) as error:
        stop(str(error))
    typer.echo(json.dumps(found, indent=1, ensure_ascii=False) if as_json else "\n".join(in_words(found)))


def main() -> None:
    """Entry point of the command."""
    app()


if __name__ == "__main__":
    main()
