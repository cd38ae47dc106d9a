"""`palimpsest download`: the weights of an experiment, with their licences, into the hub cache."""

from __future__ import annotations

from collections.abc import Callable

from palimpsest import fetching
from palimpsest.estimate import downloads
from palimpsest.estimate.downloads import Item
from palimpsest.fetching import Refused
from palimpsest.findings import size
from palimpsest.plan.build import Plan
from palimpsest.weights import hub_cache, is_hub_id


def wanted(plan: Plan, only: str) -> list[Item]:
    """The hub repositories that are not here."""
    return [item for item in downloads.items(plan) if not item.here and is_hub_id(item.path) and item.licence != "of its authors"
            and only in item.path and not (plan.root / item.path).exists()]  # fmt: skip


def patterns_of(item: Item) -> tuple[str, ...]:
    """The files that are read of a repository."""
    if "tokenizer" in item.note:
        return fetching.PLAIN
    if not item.whole:
        return (*fetching.PLAIN, *item.stored)
    diffusers = any(use == "model" or use == "method cleaned" for use in item.used.split(", "))
    return (*(fetching.DIFFUSERS if diffusers else fetching.FLAT), *item.stored)


def setting_of(item: Item) -> str:
    """What may be set to a local folder instead."""
    use, _, name = item.used.split(", ")[0].partition(" ")
    where = {
        "model": "model.path",
        "detector": f"detectors.{name}.path",
        "method": f"overrides.{name}",
        "masks": "masks",
    }
    return where.get(use, f"quality.measures.{name}.path")


def run(plan: Plan, experiment: str, only: str, accept: bool, say: Callable[[str], None]) -> None:
    """List what is missing, or fetch it. Raises Refused naming everything that could not be fetched."""
    found = wanted(plan, only)
    if not found:
        say("Nothing is to be fetched: the weights of this experiment are here, or do not come from the hub.")
        return
    for item in found:
        amount = size(item.bytes) if item.bytes else "size unknown"
        say(
            f"{item.path}{f'@{item.revision}' if item.revision else ''}: {amount}, {item.licence}, for {item.used}"
        )
    if not accept:
        command = " ".join(
            filter(None, ("palimpsest download", experiment, f"--only {only}" if only else "", "--accept"))
        )
        say(
            f"About {size(downloads.to_fetch(found))} into {hub_cache()}. Nothing was fetched yet: read the licences on the pages of these"
        )
        say(f"repositories, then give `{command}`.")
        return
    if plan.params.downloads.offline:
        raise Refused(
            "downloads.offline is true in the settings, so nothing is fetched; set it to false, or copy a hub cache"
        )
    refused = []
    for item in found:
        instead = f"a local folder (set {setting_of(item)} to it)"
        try:
            place = fetching.fetch(
                item.path, item.revision, patterns_of(item), instead=instead, licence=item.licence, tries=plan.params.downloads.tries,
                say=say,
            )  # fmt: skip
            say(f"{item.path}: whole, in {place}")
        except Refused as error:
            refused.append(str(error))
    if refused:
        raise Refused("\n".join(refused))
