"""`palimpsest share`: what is printed before, after and instead of sharing."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from palimpsest import params, tracked
from palimpsest.plan.build import Plan, build
from palimpsest.published import METRICS, PLOTS
from palimpsest.sharing import Done

SHOWN = 12
EXPERIMENTS = Path("experiments")
IN_GIT = (*tracked.PLACES, "data", METRICS.as_posix(), PLOTS.as_posix())


def other_plans(settings: Path, root: Path) -> Iterator[Plan]:
    """The plans of the default experiment and of every file of `experiments/`: pruning spares what any of them names."""
    yield build(params.load(settings), root)
    for overlay in sorted((root / EXPERIMENTS).glob("*.yaml")):
        yield build(params.load(settings, overlay), root)


def listed(title: str, names: Sequence[str]) -> list[str]:
    """A titled list, cut when it is long; nothing when it is empty."""
    if not names:
        return []
    more = [f"  ... and {len(names) - SHOWN} more"] if len(names) > SHOWN else []
    return [title, *(f"  {name}" for name in names[:SHOWN]), *more]


def summary(done: Done, dry_run: bool) -> list[str]:
    """What was, or would be, tracked, pruned and left."""
    state, would = done.state, "would be " if dry_run else ""
    absent = f"; {state.absent} of the plan are not here" if state.absent else ""
    lines = [f"{len(state.present)} file(s) of the plan read and found whole{absent}."]
    lines += listed(f"{would}deleted, no plan names them:", done.pruned)
    lines += listed(f"{would}tracked:", done.added)
    lines += listed(f"{would}written for `dvc metrics` and `dvc plots`:", done.published)
    lines += listed(
        "made again here; what was shared under these names stays (`palimpsest share --repair` brings it here):",
        state.remade,
    )
    lines += listed(
        "left out, because the settings do not name them (`palimpsest share --prune` deletes them):",
        done.strangers,
    )
    return lines


def pending(root: Path) -> list[str]:
    """Files of shared results that git has not committed."""
    command = ["git", "status", "--porcelain", "--untracked-files=all", "-z", "--", *IN_GIT]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return []
    names = [entry[3:] for entry in done.stdout.split("\0") if len(entry) > 3]
    return sorted(
        n
        for n in names
        if n.endswith((".dvc", ".gitignore")) or Path(n).parts[0] in (METRICS.name, PLOTS.name)
    )


def next_steps(root: Path, experiment: str) -> list[str]:
    """What to type now."""
    if not pending(root):
        return ["Nothing is new: all of it is committed. `dvc push` sends what the remote still lacks."]
    folders = [f for f in ("models", "data", "reports", METRICS.name, PLOTS.name) if (root / f).is_dir()]
    store = [] if tracked.remotes(root) else ["  dvc remote add -d store /path/or/s3/address   # once"]
    return [
        "Now share it:",
        *store,
        f"  git add {' '.join(folders)}",
        f"  git commit -m 'Results of {experiment}'",
        "  dvc push",
        "  git push",
    ]
