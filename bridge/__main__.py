"""`python -m bridge`: the `imagegen` command."""

from __future__ import annotations

import sys

from bridge.commands.main import main

sys.exit(main())
