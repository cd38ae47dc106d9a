"""What all tests share."""

from __future__ import annotations

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a parametrised test marked `first_case` only the first case is quick; the others become slow ones. Scenarios of the pipeline go
    first: they are the longest, and at the end one worker would wait for another.
    """
    items.sort(key=lambda item: "pipeline" not in item.path.parts)
    seen: set[str] = set()
    for item in items:
        if item.get_closest_marker("first_case") is None:
            continue
        function = item.nodeid.partition("[")[0]
        if function in seen:
            item.add_marker(pytest.mark.slow)
        seen.add(function)
