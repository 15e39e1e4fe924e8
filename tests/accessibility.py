"""What axe, the checker of accessibility, finds in a page that Chromium shows."""

from typing import Any

from axe_playwright_python.sync_playwright import Axe


def serious(page: Any) -> list[str]:
    """Faults of axe's serious and critical kinds: the rule, what it asks for, and the first place."""
    found = Axe().run(page).response["violations"]
    return [
        f"{fault['id']}: {fault['help']}: {fault['nodes'][0]['html'][:200]}"
        for fault in found
        if fault["impact"] in ("serious", "critical")
    ]
