"""Which means to use, and the record that lets it be undone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from overlay.desktop.shortcuts.binding import KEYS, Binding, Means, toggle_command
from overlay.desktop.shortcuts.gsettings import CINNAMON, GNOME, GSettingsBinding
from overlay.desktop.shortcuts.kde import KdeBinding
from overlay.desktop.shortcuts.xfce import XfceBinding

ALL_MEANS: tuple[Means, ...] = (
    GSettingsBinding("gnome", GNOME),
    GSettingsBinding("cinnamon", CINNAMON),
    XfceBinding(),
    KdeBinding(),
)
BY_HAND = "bind the key of your choice to this command in your desktop's or compositor's settings"


def bind_shortcut(environment: Mapping[str, str] = os.environ) -> Binding | None:
    """Bind Alt+Space in the desktop's own settings; None where it has none that we know. Raises ShortcutError.

    The running overlay then holds the key by itself where it can: by the portal, or by an X11 grab.
    """
    for means in ALL_MEANS:
        if means.available(environment):
            return means.bind(toggle_command(), KEYS)
    return None


def unbind_shortcut(record: Mapping[str, Any]) -> str | None:
    """Undo a recorded binding; returns its description, None where nothing is recorded. Raises ShortcutError."""
    if not record:
        return None
    binding = Binding(**record)
    for means in ALL_MEANS:
        if means.name == binding.means:
            means.unbind(binding)
            return binding.description
    return None


def as_record(binding: Binding) -> dict[str, Any]:
    """For the preferences."""
    return asdict(binding)
