"""The catalog's ControlNets: which one ``auto`` means, and that it is fetched on first use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.pack.fake_hub import running_hub
from tests.pack.pipelines import handle_for

pytestmark = pytest.mark.usefixtures("comfy_modules", "unloaded")
CONTROLLED = (
    ("tiny-flux-canny", "flux", 32),
    ("tiny-sdxl-union", "sdxl", 64),
    ("tiny-qwen-image-union", "qwen-image", 32),
)
CUSTOM_NODES = Path(__file__).parents[3] / "custom_nodes"
FETCH = """
import json, sys
from neurolux.catalog.auxiliary import read_auxiliary_catalog
from neurolux.errors import NeuroLuxError
from neurolux.weights.download.auxiliary import fetch, auxiliary_status
from neurolux.weights.progress import LoadReporter

seen, result = [], {}


class Reporter(LoadReporter):
    def downloading(self, transfer):
        seen.append((transfer.done, transfer.total, transfer.repo))


helper = read_auxiliary_catalog().controlnets["sdxl-canny"]
result["before"] = auxiliary_status(helper, [], "models/controlnet/").state
try:
    folder = fetch(helper, [], "models/controlnet/", Reporter())
    result["files"] = sorted(path.name for path in folder.iterdir())
except NeuroLuxError as error:
    result |= {"error": type(error).__name__, "message": str(error)}
result["after"] = auxiliary_status(helper, [], "models/controlnet/").state
print(json.dumps({**result, "seen": seen}))
"""


def stamps(controlnets: dict[str, Path], *names: str) -> list[Any]:
    from neurolux.weights.stamps import stamp_file

    return [stamp_file(name, controlnets[name]) for name in names]


def test_the_catalog_says_what_each_auxiliary_model_is() -> None:
    from neurolux.adapters.control.applied import mode_choices
    from neurolux.catalog.auxiliary import read_auxiliary_catalog

    catalog = read_auxiliary_catalog()
    for family in ("flux", "sdxl", "qwen-image"):
        kinds = {kind for one in catalog.controlnets.values() if one.family == family for kind in one.kinds}
        assert {"canny", "depth", "pose", "soft edge"} <= kinds <= set(mode_choices())
    for helper in (*catalog.controlnets.values(), *catalog.preprocessors.values()):
        assert helper.license
        assert helper.download_bytes > 10_000_000
        assert helper.repo.count("/") == 1


def test_the_kind_comes_before_the_union_and_another_family_never(controlnets: dict[str, Path]) -> None:
    from neurolux.adapters.control.choice import choose_file

    files = stamps(controlnets, "tiny-flux-union", "tiny-sdxl-canny", "tiny-flux-depth", "tiny-flux-canny")
    chosen = {kind: choose_file(files, "flux", 32, kind) for kind in ("canny", "depth", "pose")}
    assert {kind: file.name if file else None for kind, file in chosen.items()} == {
        "canny": "tiny-flux-canny",
        "depth": "tiny-flux-depth",
        "pose": "tiny-flux-union",
    }
    assert choose_file(files, "sdxl", 64, "depth") is None
    assert choose_file(files, "flux", 3072, "canny") is None


def test_one_file_tells_its_width_as_its_folder_does(controlnets: dict[str, Path], tmp_path: Path) -> None:
    from neurolux.adapters.control.choice import file_width
    from neurolux.weights.stamps import stamp_file

    for name, family, width in CONTROLLED:
        single = tmp_path / f"{name}.safetensors"
        single.write_bytes((controlnets[name] / "diffusion_pytorch_model.safetensors").read_bytes())
        assert file_width(stamp_file(name, controlnets[name]), family) == width
        assert file_width(stamp_file(single.name, single), family) == width


def test_the_catalog_offers_only_what_fits() -> None:
    from neurolux.adapters.control.choice import choose_catalog
    from neurolux.catalog.auxiliary import read_auxiliary_catalog

    entries = list(read_auxiliary_catalog().controlnets.values())
    wanted = (("flux", 3072, "depth"), ("sdxl", 2048, "pose"), ("qwen-image", 3072, "canny"))
    names = [choose_catalog(entries, *one) for one in wanted]
    assert [one.name if one else None for one in names] == [
        "flux-union-pro-2", "sdxl-union-promax", "qwen-image-union",
    ]  # fmt: skip
    assert choose_catalog(entries, "flux", 256, "canny") is None


def test_auto_takes_the_user_s_file_and_says_when_there_is_none(
    tiny_models: dict[str, Path], controlnets: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import folder_paths
    from neurolux.errors import InvalidParameter
    from neurolux.library.controlnets import controlnet_names, find_controlnet

    handle = handle_for(tiny_models["tiny-flux-dev"])
    places = ([str(controlnets["tiny-flux-canny"].parent)], {".safetensors"})
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "controlnet", places)
    folder_paths.filename_list_cache.pop("controlnet", None)
    assert controlnet_names()[0] == "auto"
    assert {"tiny-flux-canny", "flux-union-pro-2"} < set(controlnet_names())
    assert find_controlnet("auto", handle, "canny").name == "tiny-flux-canny"
    assert find_controlnet("auto", handle, "pose").name == "tiny-flux-union"
    with pytest.raises(InvalidParameter, match=r"auto requires a mode \(the kind of control image\): set mode"):
        find_controlnet("auto", handle, "auto")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "controlnet", ([str(tmp_path)], {".safetensors"}))
    folder_paths.filename_list_cache.pop("controlnet", None)
    with pytest.raises(InvalidParameter, match="no ControlNet for canny images that fits tiny-flux-dev"):
        find_controlnet("auto", handle, "canny")
    with pytest.raises(InvalidParameter, match="no ControlNet 'mine'; known are .*flux-union-pro-2"):
        find_controlnet("mine", handle, "canny")
    folder_paths.filename_list_cache.pop("controlnet", None)


def fetched(home: Path, url: str, **environment: str) -> dict[str, Any]:
    """What a process makes of it that has a cache of its own."""
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "http", "HTTP"))}
    variables |= {"HF_HOME": str(home), "HF_ENDPOINT": url, "PYTHONPATH": str(CUSTOM_NODES)}
    variables |= {"HF_HUB_DISABLE_XET": "1", **environment}
    done = subprocess.run([sys.executable, "-c", FETCH], env=variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_one_of_the_catalog_is_fetched_once_with_its_bytes_counted(
    controlnets: dict[str, Path], tmp_path: Path
) -> None:
    weights = (controlnets["tiny-sdxl-canny"] / "diffusion_pytorch_model.safetensors").read_bytes()
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(weights)
    (tmp_path / "repo" / "README.md").write_text("not needed")
    with running_hub(tmp_path / "repo") as hub:
        offline = fetched(tmp_path / "hf", hub.url, HF_HUB_OFFLINE="1")
        assert (offline["before"], offline["error"]) == ("missing", "WeightsMissing")
        assert "unset it once to fetch diffusers/controlnet-canny-sdxl-1.0, or put its files" in offline["message"]
        first = fetched(tmp_path / "hf", hub.url)
        assert (first["before"], first["after"]) == ("downloadable", "ready")
        assert first["files"] == ["diffusion_pytorch_model.fp16.safetensors"]
        assert first["seen"][-1][:2] == [len(weights), len(weights)]
        hub.requested.clear()
        again = fetched(tmp_path / "hf", hub.url, HF_HUB_OFFLINE="1")
        assert again["before"] == "ready"
        assert hub.requested == []
