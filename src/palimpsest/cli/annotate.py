"""`palimpsest annotate`: people label images in the browser; export and import of what they said."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from palimpsest.cli.common import Overlays, load_plan, load_settings, stop

if TYPE_CHECKING:
    from palimpsest.annotate.board import Board
    from palimpsest.annotate.server import Server
    from palimpsest.annotate.session import Session
    from palimpsest.params import Params

STORES = Path("data/annotation")
LABELS = Path("data/labels")
app = typer.Typer(invoke_without_command=True, no_args_is_help=False, rich_markup_mode=None)
Store = Annotated[
    Path | None,
    typer.Option("--store", help=f"Where answers and images are kept; {STORES}/<experiment> when left out."),
]


@app.callback()
def annotate(
    context: typer.Context,
    method: Annotated[
        list[str] | None,
        typer.Option(help="Images of this method; repeatable. The base model's when nothing is chosen."),
    ] = None,
    suite: Annotated[list[str] | None, typer.Option(help="Only of this prompt suite; repeatable.")] = None,
    cell: Annotated[
        list[str] | None,
        typer.Option(help="Cells by a pattern of their place, such as 'uce/*/glitch.*/nsfw/*'; repeatable."),
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="Images below this folder instead.")] = None,
    manifest: Annotated[
        Path | None, typer.Option(help="Images that this CSV names in its column `file` instead.")
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(min=1, help="At most so many images of each cell: the same prompts of all methods."),
    ] = None,
    rater: Annotated[
        list[str] | None, typer.Option(help="A name that may label; repeatable. Anybody may when left out.")
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Decides every rater's order; fixed when the store is begun.")
    ] = 0,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 0,
    config: Overlays = None,
    store: Store = None,
) -> None:
    """Serve a page on this machine on which people label images, blurred until they ask. Stop it with Ctrl-C; nothing is lost."""
    if context.invoked_subcommand is not None:
        return
    from palimpsest.annotate.pictures import NoPictures
    from palimpsest.annotate.server import Server

    settings = load_settings(config)
    session = _open(settings, _store(settings, store), seed, rater or [])
    try:
        if folder or manifest or method or suite or cell or not session.here:
            new = session.add(_found(config, method, suite, cell, folder, manifest, count))
            typer.echo(f"{new} new image(s) in the store, {len(session.here)} in all")
        server = Server(session, port)
    except BaseException as error:
        session.close()
        if isinstance(error, NoPictures | OSError):
            stop(str(error))
        raise
    if session.journal.torn:
        typer.echo(
            f"the last run was stopped in the middle of writing: {session.journal.torn} byte(s) set aside, no saved answer is lost"
        )
    _serve(server, session)


def _serve(server: Server, session: Session) -> None:
    """Answer until somebody stops it."""
    typer.echo(f"open {server.address}")
    typer.echo("Ctrl-C ends it; the same command goes on where it stopped.")
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        typer.echo("stopped; everything is saved")
    finally:
        server.server_close()
        session.close()


def _interrupt(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


def _store(settings: Params, given: Path | None) -> Path:
    return given or STORES / settings.experiment


def _open(settings: Params, folder: Path, seed: int = 0, raters: list[str] | None = None) -> Any:
    """The session of a store; whatever is in the way ends the command."""
    from palimpsest.annotate.journal import Busy, Damaged
    from palimpsest.annotate.session import Session

    try:
        return Session(
            folder, {name: theme.detailed for name, theme in settings.themes.items()}, seed, raters or ()
        )
    except (Busy, Damaged, ValueError, OSError) as error:
        stop(str(error))


def _found(
    config: list[Path] | None,
    method: list[str] | None,
    suite: list[str] | None,
    cell: list[str] | None,
    folder: Path | None,
    manifest: Path | None,
    count: int | None,
) -> Iterator[Any]:
    """The images that the options ask for. Raises NoPictures."""
    from palimpsest.annotate import pictures

    chosen = [bool(method or suite or cell), folder is not None, manifest is not None]
    if sum(chosen) > 1:
        stop("choose images of cells, of a folder or of a manifest: one of them")
    if folder is not None:
        return pictures.of_folder(folder)
    if manifest is not None:
        return pictures.of_manifest(manifest)
    plan = load_plan(config)
    return pictures.of_cells(plan.root, pictures.chosen(plan, method or [], suite or [], cell or []), count)


def _board(settings: Params, folder: Path) -> Board:
    """The board of a store, which may be open in a server."""
    from palimpsest.annotate import board, journal
    from palimpsest.annotate.session import JOURNAL

    try:
        return board.replay(journal.read(folder / JOURNAL))
    except FileNotFoundError:
        stop(f"there is no store in {folder}; `palimpsest annotate` begins one, --store names another")
    except journal.Damaged as error:
        stop(str(error))


@app.command("export")
def export(
    out: Annotated[
        Path | None,
        typer.Argument(help=f"A .parquet or .csv file; {LABELS}/<experiment>/votes.parquet when left out."),
    ] = None,
    config: Overlays = None,
    store: Store = None,
) -> None:
    """Write every vote into a file. Below data/labels/<experiment>/, `snakemake` makes the table of classifiers from it."""
    from palimpsest import tracked
    from palimpsest.annotate import exchange

    settings = load_settings(config)
    path = out or LABELS / settings.experiment / "votes.parquet"
    try:
        count = exchange.write(_board(settings, _store(settings, store)), path)
    except (exchange.BadVotes, OSError) as error:
        stop(str(error))
    typer.echo(f"{count} vote(s) written to {path}")
    if LABELS in path.parents and Path(".dvc").is_dir() and path.suffix == ".parquet":
        try:
            tracked.add(Path("."), [path.as_posix()])
        except tracked.DvcFailed as error:
            stop(str(error))
        typer.echo(
            f"DVC tracks it. Share it with\n  git add {path}.dvc\n  git commit -m 'Labels of {settings.experiment}'\n  dvc push"
        )


@app.command("import")
def take_in(
    file: Annotated[
        Path,
        typer.Argument(help="A .parquet or .csv file that `export` wrote, or one with the same columns."),
    ],
    config: Overlays = None,
    store: Store = None,
) -> None:
    """Take in votes that were given elsewhere. An answer that is here already stays."""
    from palimpsest.annotate import exchange

    settings = load_settings(config)
    try:
        found = exchange.read(file)
    except (exchange.BadVotes, OSError) as error:
        stop(str(error))
    session = _open(settings, _store(settings, store))
    try:
        counts = session.take(found.votes, found.places)
    except ValueError as error:
        stop(f"{file}: {error}")
    finally:
        session.close()
    typer.echo(f"{counts['new']} new vote(s), {counts['same']} known already")
    if counts["kept"]:
        typer.echo(f"{counts['kept']} vote(s) differ from what the same person said here; what is here stays")


@app.command("status")
def status(config: Overlays = None, store: Store = None) -> None:
    """Progress of every rater, agreement per theme, and how many disagreements are open. Works while a server runs."""
    from palimpsest.annotate import votes
    from palimpsest.metrics.agreement import agreement

    settings = load_settings(config)
    folder = _store(settings, store)
    board = _board(settings, folder)
    for name, sheet in sorted(board.raters.items()):
        typer.echo(f"{name}: {len(sheet.given)} of {len(board.places)} images, {len(sheet.skipped)} skipped")
    said = board.votes()
    for theme in board.themes:
        ratings = votes.ratings(said, theme)
        if not ratings or len(ratings[0]) < 2:
            continue
        import numpy as np

        parts = [
            f"{item.name.replace('_', ' ')} {item.value:.2f} [{item.low:.2f}, {item.high:.2f}] over {item.n} images"
            for item in agreement(np.array(ratings), 2)
            if item.n > 1 and item.value == item.value
        ]
        typer.echo(f"{theme}: {'; '.join(parts) or 'no agreement to measure yet'}")
    disputes = board.disputes()
    left = sum(set(themes) - set(decided) != set() for _, themes, decided in disputes)
    typer.echo(f"{len(disputes)} image(s) with opposite answers, {left} not decided")
