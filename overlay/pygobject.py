"""Makes the PyGObject of the distribution importable.

The overlay runs in the project's virtual environment, where pydantic and aiohttp are; ``gi`` comes from the
distribution (python3-gi), because building it needs a compiler and GTK's headers. That works if both have the same
Python version, which is checked here.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import subprocess
import sys

PACKAGES = "python3-gi gir1.2-gtk-4.0 gir1.2-adw-1"
OLDEST_GTK = (4, 8)


class OverlayUnavailable(Exception):
    """The overlay cannot run here. The message says what is missing and how to get it."""


def require_gtk() -> None:
    """Make ``from gi.repository import Gtk, Adw`` work. Raises OverlayUnavailable."""
    if importlib.util.find_spec("gi") is None:
        _borrow_from_system()
    try:
        import gi

        gi.require_version("Gtk", "4.0")
        gi.require_version("Adw", "1")
        from gi.repository import Adw, Gtk
    except (ImportError, ValueError) as error:
        raise OverlayUnavailable(f"GTK 4 or libadwaita is missing ({error}); {_remedy()}") from error
    found = (Gtk.get_major_version(), Gtk.get_minor_version())
    if found < OLDEST_GTK:
        raise OverlayUnavailable(f"GTK {found[0]}.{found[1]} is too old; the overlay needs 4.8 with libadwaita 1.2")
    assert Adw is not None


def _borrow_from_system() -> None:
    """Put the folder of the system Python's ``gi`` last on the path, if that Python has our version."""
    python = shutil.which("python3", path="/usr/bin:/bin")
    if python is None:
        raise OverlayUnavailable(f"PyGObject is missing; {_remedy()}")
    asked = "import gi, os, sys; print(sys.version_info[0], sys.version_info[1], os.path.dirname(gi.__path__[0]))"
    answer = subprocess.run([python, "-c", asked], capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise OverlayUnavailable(f"PyGObject is missing; {_remedy()}")
    major, minor, folder = answer.stdout.strip().split(" ", 2)
    if (int(major), int(minor)) != sys.version_info[:2]:
        raise OverlayUnavailable(
            f"the system's PyGObject is for Python {major}.{minor} and this is Python "
            f"{sys.version_info[0]}.{sys.version_info[1]}; recreate the environment with that version: "
            f"make clean setup PYTHON=/usr/bin/python{major}.{minor}"
        )
    sys.path.append(folder)
    importlib.invalidate_caches()


def _remedy() -> str:
    return f"install it: sudo apt-get install {PACKAGES} (or your distribution's packages of GTK 4 and libadwaita)"
