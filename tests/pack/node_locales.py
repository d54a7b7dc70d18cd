"""``locales/en/nodeDefs.json`` as the nodes' own schemas give it.

Write it anew with ``python tests/pack/node_locales.py URL`` while a ComfyUI with the pack runs at URL.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

LOCALE_FILE = Path(__file__).parents[2] / "custom_nodes" / "neurolux" / "locales" / "en" / "nodeDefs.json"


def node_definitions(object_info: dict[str, Any]) -> dict[str, Any]:
    """The pack's part of ``/object_info``, in the shape that ComfyUI's locales have."""
    return {
        name: {
            "display_name": info["display_name"],
            "description": info["description"],
            "inputs": {
                key: {"name": key.replace("_", " "), "tooltip": options["tooltip"]}
                for group in ("required", "optional")
                for key, (_, options) in info["input"].get(group, {}).items()
            },
            "outputs": {
                str(index): {"name": output, "tooltip": info["output_tooltips"][index]}
                for index, output in enumerate(info["output_name"])
            },
        }
        for name, info in sorted(object_info.items())
        if name.startswith("NeuroLux")
    }


if __name__ == "__main__":
    with urllib.request.urlopen(f"{sys.argv[1]}/object_info") as response:
        definitions = node_definitions(json.load(response))
    LOCALE_FILE.write_text(json.dumps(definitions, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
