"""Texts in the user's language: gettext, with English as the source. Free of gi, so that view-models can use it.

`make pot` writes the template of translations. TEXTDOMAINDIR names another folder of them, to try one out.
"""

from __future__ import annotations

import gettext
import locale
import os
from pathlib import Path

DOMAIN = "neurolux-overlay"
LOCALE_FOLDER = Path(os.environ.get("TEXTDOMAINDIR") or Path(__file__).parent / "locale")

# GTK translates the .ui files by the C library's gettext, which has to be told the folder by itself.
locale.bindtextdomain(DOMAIN, LOCALE_FOLDER)
locale.bind_textdomain_codeset(DOMAIN, "UTF-8")
_translations = gettext.translation(DOMAIN, LOCALE_FOLDER, fallback=True)
_ = _translations.gettext
plural = _translations.ngettext
