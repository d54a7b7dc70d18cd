"""The service on this machine: where it is, and how the Start button starts it."""

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
    """The service that IMAGEGEN_URL names, else the one running on this state folder, else where one would be."""
    named = os.environ.get(URL_VARIABLE)
    if named:
        return named.rstrip("/")
    service = running_service(settings)
    return service.url if service else settings.url or DEFAULT_URL


def port_to_start_on(settings: Settings) -> int | None:
    """Where a service that is started here would be found; None where IMAGEGEN_URL names another machine's."""
    named = urlsplit(os.environ.get(URL_VARIABLE) or settings.url)
    here = named.scheme == "http" and is_loopback(named.hostname or "")
    return named.port if here else None


class ServiceStarter:
    """Starts ``imagegen up`` as a program of its own: it outlives the overlay, as a service should."""

    def __init__(self, settings: Settings, connection: Connection) -> None:
        self._settings = settings
        self._connection = connection
        self._port = port_to_start_on(settings)
        connection.startable = self._port is not None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it unless it starts already; the connection's banner tells how it goes."""
        if self._connection.state is not BridgeState.DOWN or self._port is None:
            return
        log = self._settings.logs / LOG_NAME
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("wb") as output:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "bridge.commands.main", "up", "--port", str(self._port)],
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
        self._connection.start_failed(self._last_words())
        return GLib.SOURCE_REMOVE

    def _last_words(self) -> str:
        log = self._settings.logs / LOG_NAME
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else _("It ended without a word; see {log}").format(log=log)
