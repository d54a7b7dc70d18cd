"""Translates texts with gettext; English is the source. View-models use it too, so it imports no gi.

`make pot` writes the template. TEXTDOMAINDIR names another folder of translations, to try one out.
"""

from __future__ import annotations

import gettext
import locale
import os
from pathlib import Path

DOMAIN = "neurolux-overlay"
LOCALE_FOLDER = Path(os.environ.get("TEXTDOMAINDIR") or Path(__file__).parent / "locale")

# GTK translates the .ui files with the C library's gettext, which needs the folder as well.
locale.bindtextdomain(DOMAIN, LOCALE_FOLDER)
locale.bind_textdomain_codeset(DOMAIN, "UTF-8")
_translations = gettext.translation(DOMAIN, LOCALE_FOLDER, fallback=True)
_ = _translations.gettext
plural = _translations.ngettext
