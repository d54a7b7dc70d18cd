"""The command that starts the desktop overlay, which is a program of its own."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys

from bridge.service.errors import ServiceError


def add_parsers(subparsers: argparse._SubParsersAction) -> None:
    """Add the parsers of this module."""
    overlay = subparsers.add_parser(
        "overlay",
        help="the desktop overlay: Alt+Space, a prompt, an image",
        description="Show the overlay. One process serves the desktop session; later calls go to it.",
    )
    what = overlay.add_mutually_exclusive_group()
    what.add_argument("--toggle", action="store_true", help="show or hide the bar")
    what.add_argument("--hidden", action="store_true", help="start hidden, ready for the shortcut")
    what.add_argument("--generate", metavar="PROMPT", help="generate this with the last settings")
    what.add_argument(
        "--install",
        action="store_true",
        help="install the menu entry, icon, start at login and Alt+Space for this user",
    )
    what.add_argument("--uninstall", action="store_true", help="remove all of that")
    overlay.set_defaults(run=overlay_command)


def overlay_command(args: argparse.Namespace) -> int:
    """`imagegen overlay`"""
    if importlib.util.find_spec("overlay") is None:
        raise ServiceError("the overlay is not part of this installation; use the project's repository")
    options = [f"--{name}" for name in ("toggle", "hidden", "install", "uninstall") if getattr(args, name)]
    if args.generate is not None:
        options.append(f"--generate={args.generate}")
    os.execv(sys.executable, [sys.executable, "-m", "overlay", *options])  # noqa: S606 - no shell is wanted
