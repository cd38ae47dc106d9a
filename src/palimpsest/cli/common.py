"""What every command needs: the settings or the plan of an experiment, and a way to end with a message."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from palimpsest.params import Params
    from palimpsest.plan.build import Plan

SETTINGS = "params.yaml"
Overlays = Annotated[
    list[Path] | None,
    typer.Option(
        "--config", "-c", help="Settings laid over params.yaml, as snakemake's --configfile; repeatable."
    ),
]


def stop(message: str, code: int = 1) -> NoReturn:
    """Print a message to standard error and end with an exit code."""
    typer.echo(message, err=True)
    raise typer.Exit(code)


def load_settings(overlays: list[Path] | None) -> Params:
    """The experiment's settings; every problem is printed and ends the command."""
    from palimpsest import params

    if not Path(SETTINGS).is_file():
        stop(
            f"there is no {SETTINGS} in {Path.cwd()}; run this in the project folder (where the Snakefile is)"
        )
    try:
        return params.load(SETTINGS, *(overlays or []))
    except params.BadSettings as error:
        stop(str(error))


def load_plan(overlays: list[Path] | None) -> Plan:
    """The plan of the experiment; settings that cannot be planned end the command."""
    from palimpsest import params
    from palimpsest.plan.build import build

    settings = load_settings(overlays)
    try:
        return build(settings, ".")
    except params.BadSettings as error:
        stop(str(error))
