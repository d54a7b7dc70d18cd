"""``python -m overlay``: the process of the overlay, which `imagegen overlay` starts."""

from __future__ import annotations

import sys

from overlay.desktop.install import install, uninstall
from overlay.pygobject import OverlayUnavailable, require_gtk


def main(arguments: list[str]) -> int:
    """Run the application, or pass the arguments to the running one. Install and uninstall need no display."""
    for option, act in (("--install", install), ("--uninstall", uninstall)):
        if option in arguments:
            print("\n".join(act()))
            return 0
    try:
        require_gtk()
    except OverlayUnavailable as error:
        print(f"imagegen: {error}", file=sys.stderr)
        return 1
    from overlay.application import run  # Late: it imports gi.

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
