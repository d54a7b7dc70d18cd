"""Texts in the user's language: gettext, with English as the source. Free of gi, so that view-models can use it."""

from __future__ import annotations

import gettext
from pathlib import Path

DOMAIN = "neurolux-overlay"
LOCALE_FOLDER = Path(__file__).parent / "locale"

_translations = gettext.translation(DOMAIN, LOCALE_FOLDER, fallback=True)
_ = _translations.gettext
plural = _translations.ngettext
