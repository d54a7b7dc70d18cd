"""Why ComfyUI did not start, from its log: only errors are reasons, whatever form the log has."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.service.children.log_file import LogFile
from bridge.service.children.start_log import last_error, remedy_for, why_the_pack_failed

INFO, WARNING, ERROR = "\x1b[32m[INFO]\x1b[0m ", "\x1b[1m\x1b[33m[WARNING]\x1b[0m ", "\x1b[1m\x1b[31m[ERROR]\x1b[0m "
FRAMES = 'Traceback (most recent call last):\n  File "main.py", line 3, in <module>\n    import x  # No module named\n'
MISSING = FRAMES + "ModuleNotFoundError: No module named 'torchsde'\n"
GONE = "ModuleNotFoundError: No module named 'torchsde'"
PACKAGE, PORT, DRIVER, DISK = "requirements.txt", "its port", "NVIDIA driver", "disk"
ARGUMENTS = "IMAGEGEN_COMFYUI_ARGS"
NVIDIA = "RuntimeError: Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU"
IN_USE = "OSError: [Errno 98] error while attempting to bind on address ('127.0.0.1', 8188): address already in use"
TAKEN = "Port 8188 is already in use on address 127.0.0.1. Please close the other application"
FULL = "OSError: [Errno 28] No space left on device: '/x'"
OPTION = "main.py: error: unrecognized arguments: --no-such-option"
OPENGL = "No OpenGL_accelerate module loaded: No module named 'OpenGL_accelerate'\n"
OTHER_PACK = "Cannot import /x/custom_nodes/other module for custom nodes: No module named 'other'\n"
CHAIN = "\nDuring handling of the above exception, another exception occurred:\n\n"
DATABASE = "Failed to initialize database. Please ensure you have installed the latest requirements: no such table"


@pytest.mark.parametrize(
    ("log", "error", "remedy"),
    [
        pytest.param("", None, None, id="nothing"),
        pytest.param(INFO + "Starting server\n", None, None, id="no error, with levels"),
        pytest.param("Starting server\n", None, None, id="no error, without levels"),
        pytest.param(INFO + OPENGL, None, None, id="an optional module, with levels"),
        pytest.param(OPENGL, None, None, id="an optional module, without levels"),
        pytest.param(WARNING + "No space left on device for the detail log\n", None, None, id="a warning"),
        pytest.param(WARNING + MISSING + WARNING + OTHER_PACK, None, None, id="another pack fails, with levels"),
        pytest.param(MISSING + OTHER_PACK, None, None, id="another pack fails, without levels"),
        pytest.param(MISSING, GONE, PACKAGE, id="a traceback alone"),
        pytest.param(INFO + OPENGL + MISSING, GONE, PACKAGE, id="a traceback after a record"),
        pytest.param(ERROR + "Boot failed\n" + MISSING, GONE, PACKAGE, id="a record with a traceback"),
        pytest.param(ERROR + MISSING, GONE, PACKAGE, id="a traceback as a record"),
        pytest.param(MISSING + INFO + OPENGL + "more\n", GONE, PACKAGE, id="a traceback before a record"),
        pytest.param(MISSING + CHAIN + FRAMES + FULL + "\n", FULL, DISK, id="a chain: the last one counts"),
        pytest.param(FRAMES + IN_USE + "\n", IN_USE, PORT, id="the port, as asyncio writes it"),
        pytest.param(ERROR + TAKEN + "\n", TAKEN, PORT, id="the port, as ComfyUI writes it"),
        pytest.param(FRAMES + NVIDIA + "\n", NVIDIA, DRIVER, id="no driver"),
        pytest.param("usage: main.py [-h]\n" + OPTION + "\n", OPTION, ARGUMENTS, id="argparse"),
        pytest.param(INFO + OPENGL + ERROR + DATABASE + "\n", DATABASE, None, id="an error without a known remedy"),
        pytest.param(ERROR + DATABASE + "\n" + INFO + OPENGL, DATABASE, None, id="an error before a harmless record"),
        pytest.param(
            FRAMES + "RuntimeError: Failed to import x because of the following error:\nNo module named 'y'\nmore\n",
            "RuntimeError: Failed to import x because of the following error: No module named 'y'",
            PACKAGE,
            id="an error that ends on the next line",
        ),
        pytest.param("\x1b]0;title\x07\x1b[2K" + FRAMES + FULL, FULL, DISK, id="other control sequences"),
    ],
)
def test_the_last_error_of_a_log_is_the_reason(tmp_path: Path, log: str, error: str | None, remedy: str | None) -> None:
    file = LogFile(tmp_path / "comfyui.log")
    file.write(log.encode())
    file.close()
    found = last_error(file.tail(1000))
    assert found == error
    said = remedy_for(found or "")
    assert remedy in said if remedy and said else said == remedy


@pytest.mark.parametrize("level", ["", WARNING], ids=["without levels", "with levels"])
@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("Cannot import /x/neurolux module for custom nodes: No module named 'gguf'", "No module named 'gguf'"),
        ("Error while calling comfy_entrypoint in /x/neurolux: too old", "too old"),
        ("Cannot import /x/other module for custom nodes: No module named 'gguf'", None),
    ],
)
def test_why_the_pack_did_not_load(tmp_path: Path, level: str, line: str, reason: str | None) -> None:
    file = LogFile(tmp_path / "comfyui.log")
    file.write(f"{level}{line}\n{INFO}Starting server\n".encode())
    file.close()
    assert why_the_pack_failed(file.tail(1000)) == reason
