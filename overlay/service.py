"""The service on this machine: its URL, and how the Start button starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from urllib.parse import urlsplit

from gi.repository import GLib

from bridge.client import DEFAULT_URL
from bridge.service.runtime import running_service
from bridge.settings import Settings, is_loopback
from overlay.translate import _
from overlay.viewmodels.connection import BridgeState, Connection

URL_VARIABLE = "IMAGEGEN_URL"
LOG_NAME = "up.log"
CHECK_MS = 500


def find_url(settings: Settings) -> str:
    """The URL in IMAGEGEN_URL, else of the service running on this state folder, else where one would start."""
    named = os.environ.get(URL_VARIABLE)
    if named:
        return named.rstrip("/")
    service = running_service(settings)
    return service.url if service else settings.url or DEFAULT_URL


def port_to_start_on(settings: Settings) -> int | None:
    """The port on which a service started here would be found; None if IMAGEGEN_URL names another machine."""
    named = urlsplit(os.environ.get(URL_VARIABLE) or settings.url)
    here = named.scheme == "http" and is_loopback(named.hostname or "")
    return named.port if here else None


class ServiceStarter:
    """Starts ``imagegen up`` as a separate program, which outlives the overlay."""

    def __init__(self, settings: Settings, connection: Connection) -> None:
        self._settings = settings
        self._connection = connection
        self._port = port_to_start_on(settings)
        connection.startable = self._port is not None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the service unless it is starting already. The banner of the connection shows the progress."""
        if self._connection.state is not BridgeState.DOWN or self._port is None:
            return
        log = self._settings.logs / LOG_NAME
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("wb") as output:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "bridge", "up", "--port", str(self._port)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            self._connection.start_failed(str(error))
            return
        self._connection.starting()
        GLib.timeout_add(CHECK_MS, self._check)

    def _check(self) -> bool:
        if self._connection.ready or self._process is None:
            return GLib.SOURCE_REMOVE
        if self._process.poll() is None:
            return GLib.SOURCE_CONTINUE
        self._connection.start_failed(self._last_line())
        return GLib.SOURCE_REMOVE

    def _last_line(self) -> str:
        log = self._settings.logs / LOG_NAME
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else _("It stopped without an error message; see {log}").format(log=log)
