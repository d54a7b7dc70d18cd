"""`imagegen up`: starts nats-server, ComfyUI, a worker and the gateway, keeps them alive, and stops them in order.

ComfyUI takes by far the longest to start, so it starts first, and everything else starts meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from bridge.comfyui.pack import MODES_VARIABLE, PACK_ROUTE, RESULT_NODE, SERVICE_VARIABLE
from bridge.comfyui.token import TOKEN_VARIABLE, token_headers
from bridge.service.checks import ReservedPort, check_port, check_space
from bridge.service.children.child import ChildProcess
from bridge.service.children.comfyui import ManagedComfyUI, has_nodes, output_directory
from bridge.service.children.keeper import Keeper
from bridge.service.children.watchdog import Watchdog
from bridge.service.errors import ServiceError
from bridge.service.installer import Installation, find_installation, write_extra_model_paths
from bridge.service.nats import NatsWatch, accepts, find_damaged, greets, nats_child, set_aside, with_nats_token
from bridge.service.runtime import Runtime, single_instance
from bridge.service.state_folder import prepare, write_private
from bridge.service.status import probe_ready
from bridge.settings import ENV_PREFIX, Settings, without_secrets
from bridge.terminal import safe_text

STOP_ORDER = {"gateway": 2.0, "worker": 3.0, "comfyui": 2.0, "nats": 3.0}
"""The order of stopping: sources of work first. Seconds that each may take before it is killed."""
NATS_TIMEOUT_S = 15.0
POLL_S = 0.2
SILENT_S = 10.0
"""A gateway or worker that has sent no sign of life for this long does not answer."""
RETRY_S = 5.0
COMPLAIN_AFTER_S = 30.0
"""How long after ComfyUI is up the gateway may be not ready before the reason is shown."""

Say = Callable[[str], None]


def say(text: str) -> None:
    """Print a line to the terminal, if it still exists."""
    try:
        print(safe_text(text), flush=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process
    except OSError:
        pass  # It is a file on a full disk. What is in its buffer comes with the next line.


async def run_service(settings: Settings, *, require_pack: bool = True, say: Say = say) -> None:
    """Run until SIGINT, SIGTERM or SIGHUP. Raises SettingsError, ServiceError or ComfyUIError if it cannot continue."""
    settings.refuse_open_host()
    prepare(settings, say)
    check_space(settings)
    with single_instance(settings):
        check_port(settings.host, settings.port)
        await Supervisor(settings, require_pack=require_pack, say=say).run()


class Supervisor:
    """The parent of the processes of one instance."""

    def __init__(self, settings: Settings, *, require_pack: bool = True, say: Say = say) -> None:
        self._settings = with_nats_token(settings) if settings.nats_url is None else settings
        if settings.comfyui_url is None:
            self._protect_comfyui()
        self._require_pack = require_pack
        self._say = say
        self._children: dict[str, ChildProcess] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._ports: list[ReservedPort] = []
        self._began = time.monotonic()
        self._started_at = time.time()
        self._comfyui_url = settings.comfyui_url or f"http://127.0.0.1:{self._reserve()}"
        self._nats_url = settings.nats_url or f"nats://127.0.0.1:{self._reserve()}"
        self._stopping = False
        self._runtime_problem: str | None = None

    def _protect_comfyui(self) -> None:
        """If requests need a token, so does the service's own ComfyUI: the node pack's middleware demands it.

        The processes that ask ComfyUI learn the file's name from the environment.
        """
        file = self._settings.comfyui_token_file
        named = os.environ.get(TOKEN_VARIABLE) or str(file)
        if not self._settings.tokens() or named != str(file):
            file.unlink(missing_ok=True)
            return
        write_private(file, secrets.token_hex(32) + "\n")
        os.environ[TOKEN_VARIABLE] = str(file)

    async def run(self) -> None:
        outcome = self._outcome = asyncio.get_running_loop().create_future()
        self._handle_signals()
        self._say(f"NeuroLux Image Generation is starting; its files are in {self._settings.state_dir}")
        self._write_runtime()
        self._spawn(self._boot())
        try:
            await outcome
        finally:
            self._stopping = True
            await self._stop()

    # -- start -----------------------------------------------------------------------------------------------------

    async def _boot(self) -> None:
        comfyui = self._comfyui_external() if self._settings.comfyui_url else self._comfyui_managed()
        comfyui_ready = asyncio.create_task(comfyui)
        self._watch(comfyui_ready)
        await self._start_nats()
        worker = ["--comfyui-url", self._comfyui_url, "--nats-url", self._nats_url]
        output_dir = self._settings.comfyui_output_dir
        if output_dir is None and self._settings.comfyui_url is None:
            output_dir = output_directory(self._settings.comfyui_base)
        if output_dir is not None:
            worker += ["--comfyui-output-dir", str(output_dir)]
        self._start_bridge("worker", *worker)
        host, port = self._settings.host, str(self._settings.port)
        self._start_bridge("gateway", "--host", host, "--port", port, "--nats-url", self._nats_url)
        await comfyui_ready
        await self._announce()

    async def _comfyui_managed(self) -> None:
        installation = await asyncio.to_thread(find_installation, self._settings, self._say)
        comfyui = self._prepare_comfyui(installation)
        device = comfyui.device
        self._say(f"ComfyUI {installation.version} ({installation.root}) is starting on {device.kind}: {comfyui.url}")
        if device.note:
            self._say(f"warning: {device.note}")
        keeper = self._keep(comfyui.child, ready=comfyui.wait_ready)
        self._guard(keeper, comfyui.answers)
        await keeper.was_ready.wait()
        self._say(f"ComfyUI is ready after {time.monotonic() - self._began:.1f} s")

    def _prepare_comfyui(self, installation: Installation) -> ManagedComfyUI:
        return ManagedComfyUI(
            installation,
            base_directory=self._settings.comfyui_base,
            extra_model_paths=write_extra_model_paths(self._settings, installation),
            log_file=self._settings.logs / "comfyui.log",
            port=urlsplit(self._comfyui_url).port,
            require_pack=self._require_pack,
            env={
                **without_secrets(os.environ),  # third-party nodes read their environment
                MODES_VARIABLE: str(self._settings.workflows),
                SERVICE_VARIABLE: self._settings.url,
            },
        )

    async def _comfyui_external(self) -> None:
        """Wait for a ComfyUI that the user runs; it may start later than this service."""
        reported = False
        timeout = aiohttp.ClientTimeout(total=10)
        async with aiohttp.ClientSession(timeout=timeout, headers=token_headers()) as session:
            while True:
                status = await _status(session, self._comfyui_url + "/system_stats")
                if status == 200:
                    break
                if status in (401, 403):
                    raise ServiceError(
                        f"the ComfyUI at {self._comfyui_url} refuses this service (HTTP {status}): give both the same "
                        f"{TOKEN_VARIABLE}, or start ComfyUI with NEUROLUX_ALLOWED_HOSTS set to the name in the URL"
                    )
                if status is not None and status < 500:
                    raise ServiceError(f"{self._comfyui_url} is not a ComfyUI (HTTP {status}); check --comfyui-url")
                if not reported:
                    self._say(f"waiting for ComfyUI at {self._comfyui_url}, which does not answer yet")
                    reported = True
                await asyncio.sleep(1.0)
            if self._require_pack and await _status(session, self._comfyui_url + PACK_ROUTE) == 404:
                raise ServiceError(
                    f"the ComfyUI at {self._comfyui_url} has no NeuroLux nodes: link this repository "
                    "into its custom_nodes folder and restart it"
                )
            if self._require_pack and not await has_nodes(session, self._comfyui_url):
                raise ServiceError(
                    f"the ComfyUI at {self._comfyui_url} did not load NeuroLux's nodes ({RESULT_NODE} is missing): "
                    "its log says why, after 'Cannot import' or 'comfy_entrypoint'; fix that and restart it"
                )

    async def _start_nats(self) -> None:
        if self._settings.nats_url is None:
            port = urlsplit(self._nats_url).port
            assert port is not None
            child = nats_child(self._settings, port)
            keeper = self._keep(child, ready=lambda: self._nats_ready(child))
            self._guard(keeper, lambda: greets(self._nats_url))
            watch = NatsWatch(child, self._settings, self._nats_url, watched=lambda: keeper.works, say=self._say)
            self._spawn(self._lasting(watch.run))
            await keeper.was_ready.wait()
        elif not await accepts(self._nats_url):
            raise ServiceError(
                f"no NATS server answers at {self._nats_url}: start it, or leave --nats-url out, and one is started"
            )

    async def _nats_ready(self, child: ChildProcess) -> None:
        await self._wait_nats(child)
        damaged = await find_damaged(self._settings, self._nats_url)
        if not damaged:
            return
        await child.stop()
        for folder in damaged:
            self._say(f"NATS cannot read {folder}: it is made anew, and now in {set_aside(self._settings, folder)}")
        await child.start()
        self._write_runtime()
        await self._wait_nats(child)

    async def _wait_nats(self, child: ChildProcess) -> None:
        deadline = time.monotonic() + NATS_TIMEOUT_S
        while not await accepts(self._nats_url):
            if child.returncode is not None or time.monotonic() > deadline:
                raise ServiceError(f"nats-server did not start; log: {child.log_file}\n{child.log_tail(5)}")
            await asyncio.sleep(0.02)

    def _start_bridge(self, name: str, *arguments: str) -> None:
        """Start a worker or gateway. `-P` ignores a folder named bridge in the current directory."""
        argv = [sys.executable, "-P", "-m", "bridge", name, *arguments]
        env = bridge_environment(self._with_disks(), with_token=name == "gateway")
        child = ChildProcess(name, argv, log_file=self._settings.logs / f"{name}.log", env=env, beats=True)

        async def beats() -> bool:
            return time.monotonic() - child.beat_at < SILENT_S

        self._guard(self._keep(child), beats)

    def _with_disks(self) -> Settings:
        """The settings with the disks that the children of this process fill, unless the user names others."""
        if self._settings.disk_folders:
            return self._settings
        own: list[Path] = []
        if self._settings.nats_url is None:
            own.append(self._settings.nats_store)
        if self._settings.comfyui_url is None:
            own.append(self._settings.output)
        # A comma separates the folders, so one with a comma in its name cannot be passed on.
        return self._settings.model_copy(
            update={"disk_folders": tuple(str(path) for path in own if "," not in str(path))}
        )

    async def _announce(self) -> None:
        url = self._settings.url
        began = time.monotonic()
        reported = False
        while True:
            ready, message = await asyncio.to_thread(probe_ready, url, self._settings.own_token)
            if ready:
                break
            if not reported and time.monotonic() - began > COMPLAIN_AFTER_S:
                self._say(f"not ready yet: {message} (logs: {self._settings.logs})")
                reported = True
            await asyncio.sleep(POLL_S)
        self._say(f"ready after {time.monotonic() - self._began:.1f} s: {url} (try {url}/docs)")
        editor = self._comfyui_url
        if path := os.environ.get(TOKEN_VARIABLE):
            editor += f"/?token=… (the content of {path})"
        self._say(f"editor: {editor}   NATS: {self._nats_url}   stop with Ctrl-C")

    # -- running -------------------------------------------------------------------------------------------------

    def _keep(self, child: ChildProcess, **options: Any) -> Keeper:
        self._children[child.name] = child
        keeper = Keeper(child, say=self._say, changed=self._write_runtime, **options)
        self._spawn(keeper.keep())
        return keeper

    def _guard(self, keeper: Keeper, answers: Callable[[], Awaitable[bool]]) -> None:
        """Let a watchdog replace the child when it is frozen."""
        self._spawn(self._lasting(Watchdog(keeper.child, answers, watched=lambda: keeper.works, say=self._say).run))

    async def _lasting(self, watch: Callable[[], Awaitable[None]]) -> None:
        """Run a watch again and again: no fault of a watch may end what it watches."""
        while True:
            try:
                await watch()
            except Exception as error:
                self._say(f"warning: a watchdog failed ({type(error).__name__}: {error}); it is started again")
            await asyncio.sleep(RETRY_S)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._watch(asyncio.create_task(work))

    def _watch(self, task: asyncio.Task[None]) -> None:
        """Make an error in the task the outcome of the service."""
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and not self._outcome.done():
            self._outcome.set_exception(error)

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                loop.add_signal_handler(number, self._asked_to_stop)

    def _asked_to_stop(self) -> None:
        if self._stopping:  # asked twice: stop at once
            for child in self._children.values():
                child.kill()
        elif not self._outcome.done():
            self._say("stopping")
            self._outcome.set_result(None)

    def _reserve(self) -> int:
        port = ReservedPort()
        self._ports.append(port)
        return port.number

    def _write_runtime(self) -> None:
        pids = {"supervisor": os.getpid()}
        pids.update((name, child.pid) for name, child in self._children.items() if child.pid is not None)
        runtime = Runtime(self._settings.url, self._comfyui_url, self._nats_url, pids, self._started_at)
        try:
            runtime.write(self._settings)
            self._runtime_problem = None
        except OSError as error:
            problem = f"{self._settings.runtime_file} cannot be written ({error.strerror})"
            if problem != self._runtime_problem:
                self._say(f"warning: {problem}; the service goes on, and tries again")
            self._runtime_problem = problem
            asyncio.get_running_loop().call_later(RETRY_S, self._write_runtime_again)

    def _write_runtime_again(self) -> None:
        if self._runtime_problem is not None and not self._stopping:
            self._write_runtime()

    # -- stop ------------------------------------------------------------------------------------------------------

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for name, grace_s in STOP_ORDER.items():
            if name in self._children:
                await self._children[name].stop(grace_s)
        for port in self._ports:
            port.release()
        for file in (self._settings.nats_token_file, self._settings.comfyui_token_file):
            file.unlink(missing_ok=True)


def bridge_environment(settings: Settings, *, with_token: bool, env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of a worker or gateway. It carries the token, because everyone can read command lines."""
    result = {name: value for name, value in env.items() if not name.startswith(ENV_PREFIX)}
    result |= settings.environment(with_token=with_token)
    result["PYTHONUNBUFFERED"] = "1"
    return result


async def _status(session: aiohttp.ClientSession, url: str) -> int | None:
    try:
        async with session.get(url) as response:
            return response.status
    except (aiohttp.ClientError, OSError, TimeoutError):
        return None
