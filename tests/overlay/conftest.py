"""A desktop session and a service, once for all tests; the overlay is a process of its own in each."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from bridge.client import ImageGenClient
from bridge.service.children.comfyui import free_port
from bridge.service.runtime import running_service
from bridge.settings import Settings
from overlay.pygobject import require_gtk
from tests.overlay.desktop import Hands, Person, eventually, session_bus, window_manager, x_server
from tests.pack.comfy_server import comfyui_dir, running_comfyui

APPLICATION = "org.neurolux.Overlay"
REPOSITORY = Path(__file__).parents[2]
READY_TIMEOUT_S = 180
CALL_TIMEOUT_S = 60


@dataclass(frozen=True)
class Desktop:
    """A session of a desktop: what a program in it needs in its environment."""

    environment: dict[str, str]
    display: str
    home: Path


@pytest.fixture(autouse=True)
def quiet_glib(request: pytest.FixtureRequest) -> None:
    """GLib's log lines do not count as Python warnings: AT-SPI logs one whenever a program is slow to answer.

    Their class is in no module that can be imported, and with ``-n`` the process that collects warnings imports it.
    """
    if "desktop" not in request.fixturenames:
        return
    request.getfixturevalue("desktop")  # it makes gi importable
    from gi._gi import Warning as GLibWarning

    warnings.filterwarnings("ignore", category=GLibWarning)


@pytest.fixture(scope="session")
def desktop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desktop]:
    """One for all tests: AT-SPI connects to the first session bus that it finds, and to no other."""
    home = tmp_path_factory.mktemp("desktop")
    with x_server() as display:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("IMAGEGEN_", "XDG_"))},
            "DISPLAY": display,
            "GDK_BACKEND": "x11",
            "GTK_A11Y": "atspi",
            "GSK_RENDERER": "cairo",  # no GPU here
            "HOME": str(home),
            "XDG_RUNTIME_DIR": str(home),
            "XDG_DATA_HOME": str(home / ".local" / "share"),  # the bus would take it from the user database, not HOME
            "PYTHONPATH": str(REPOSITORY),
            "PYTHONFAULTHANDLER": "1",
        }
        with session_bus(environment) as bus:
            environment["DBUS_SESSION_BUS_ADDRESS"] = bus
            os.environ.update({name: environment[name] for name in ("DISPLAY", "DBUS_SESSION_BUS_ADDRESS")})
            require_gtk()
            import gi

            gi.require_version("Atspi", "2.0")
            with window_manager(environment, home):
                yield Desktop(environment, display, home)


@pytest.fixture(scope="session")
def hands(desktop: Desktop) -> Hands:
    """The keyboard of the desktop."""
    return Hands(desktop.display)


class OwnService:
    """`imagegen up` with the starter model, on a port and a state folder that outlive it, beside a ComfyUI of its own.

    So it is there again a moment after it was killed, which takes a real ComfyUI that it started itself much longer.
    """

    def __init__(self, state: Path, comfyui_url: str) -> None:
        self.settings = Settings(state_dir=state, port=free_port(), comfyui_url=comfyui_url)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it would run a request."""
        self.settings.make_directories()
        command = [sys.executable, "-m", "bridge", "up", "--state-dir", str(self.settings.state_dir)]
        command += ["--port", str(self.settings.port), "--comfyui-url", str(self.settings.comfyui_url)]
        with (self.settings.logs / "up.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        with self.client() as client:
            client.wait_ready(READY_TIMEOUT_S)

    def client(self) -> ImageGenClient:
        """A program's view of it."""
        return ImageGenClient(self.settings.url)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Jobs are accepted and wait meanwhile."""
        requests.post(f"{self.settings.url}/v1/queue/pause", timeout=60).raise_for_status()
        try:
            yield
        finally:
            requests.post(f"{self.settings.url}/v1/queue/resume", timeout=60).raise_for_status()

    def kill(self) -> None:
        """All of its processes at once, without warning."""
        runtime = running_service(self.settings)
        assert runtime
        assert self._process
        for pid in (self._process.pid, *runtime.pids.values()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(10)

    def stop(self) -> None:
        """In an orderly way."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)


@pytest.fixture(scope="session")
def own_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnService]:
    base = tmp_path_factory.mktemp("comfyui")
    with running_comfyui(comfyui_dir(), base, REPOSITORY / "custom_nodes", {"NEUROLUX_DEFAULT_MODEL": "starter"}) as up:
        service = OwnService(tmp_path_factory.mktemp("state"), up.url)
        try:
            service.start()
            yield service
        finally:
            service.stop()


def owned(desktop: Desktop) -> bool:
    """Whether an overlay runs in the session."""
    asked = ["gdbus", "call", "--session", "--dest", "org.freedesktop.DBus", "--object-path", "/org/freedesktop/DBus"]
    asked += ["--method", "org.freedesktop.DBus.NameHasOwner", APPLICATION]
    return "true" in subprocess.run(asked, env=desktop.environment, capture_output=True, text=True, check=True).stdout


@dataclass
class RunningOverlay:
    """The overlay's process, and how to call it a second time."""

    person: Person
    process: subprocess.Popen[bytes]
    start: Callable[..., subprocess.Popen[bytes]]
    config: Path
    images: Path

    def call(self, *arguments: str) -> None:
        """Run a second process, which passes ``arguments`` to the first and ends; where either hangs is printed."""
        second = self.start(*arguments)
        try:
            assert second.wait(CALL_TIMEOUT_S) == 0
        except subprocess.TimeoutExpired:
            assert self.process.poll() is None, "the overlay ended before it was called"
            for hanging in (second, self.process):
                hanging.send_signal(signal.SIGABRT)  # Python prints its stacks, as PYTHONFAULTHANDLER says
                hanging.wait(10)
            raise


@pytest.fixture
def run_overlay(
    desktop: Desktop, own_service: OwnService, tmp_path: Path
) -> Callable[..., AbstractContextManager[RunningOverlay]]:
    """Start an overlay with settings of its own, showing nothing yet; more variables may be given."""
    images = tmp_path / "Images"
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "user-dirs.dirs").write_text(f'XDG_PICTURES_DIR="{images}"\n')
    environment = {
        **desktop.environment,
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "IMAGEGEN_URL": own_service.settings.url,
    }

    @contextlib.contextmanager
    def running(more: Mapping[str, str] | None = None) -> Iterator[RunningOverlay]:
        variables = {**environment, **(more or {})}

        def start(*arguments: str) -> subprocess.Popen[bytes]:
            return subprocess.Popen([sys.executable, "-m", "overlay", *arguments], env=variables, cwd=tmp_path)

        first = start("--hidden")
        eventually(lambda: owned(desktop), "the overlay's name on the bus")
        person = Person(APPLICATION)
        try:
            yield RunningOverlay(person, first, start, tmp_path / "config", images)
        finally:
            first.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                first.wait(10)
            first.kill()
            eventually(lambda: not owned(desktop), "the overlay's name to be free again")
            eventually(person.is_gone, "the end of the overlay's part of what can be seen")

    return running


@pytest.fixture
def overlay(run_overlay: Callable[..., AbstractContextManager[RunningOverlay]]) -> Iterator[RunningOverlay]:
    """A running overlay with settings of its own, showing nothing yet."""
    with run_overlay() as running:
        yield running
