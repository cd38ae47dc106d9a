"""Checks of the keywords a method is given, before it starts to work."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from palimpsest.sampling.pipeline import Pipeline


def check_keywords(pipeline: Pipeline, pairs: Iterable[tuple[str, str | None]], method: str) -> None:
    """Raise ValueError for a keyword that is no token, or that equals the text it shall be replaced by.

    pairs: keyword and the text that takes its place (None where nothing does). Spaces around them do not
    count.
    """
    from palimpsest.sampling.embeddings import token_count

    count = 0
    for word, other in pairs:
        count += 1
        if token_count(pipeline, word) == 0:
            raise ValueError(
                f"{method}: keyword {word!r} has no token; take it out of the theme's keywords, or correct it"
            )
        if other is not None and word.strip() == other.strip():
            raise ValueError(
                f"{method}: keyword {word!r} is replaced by itself; give the theme another `safe` text, or "
                f"the method another guide"
            )
    if count == 0:
        raise ValueError(f"{method}: the target has no keywords; give every theme at least one")
