"""The whole examination of one state folder."""

from __future__ import annotations

import contextlib

from bridge.service.doctor.facts import gather
from bridge.service.doctor.findings import Report
from bridge.service.doctor.folders import check_folders
from bridge.service.doctor.store import check_store
from bridge.service.errors import ServiceError
from bridge.service.runtime import locked
from bridge.service.status import Status, get_status
from bridge.settings import Settings


async def examine(settings: Settings, *, repair: bool) -> Report:
    """Check everything. With `repair`, mend what can be mended; a running service is never touched."""
    status = status_of(settings)
    report = await examine_folder(settings, status, repair=repair)
    gather(report, settings, status)
    return report


def status_of(settings: Settings) -> Status:
    """The status of the service, also where its files cannot be read."""
    try:
        return get_status(settings)
    except OSError as error:
        return Status(message=f"unknown ({error.strerror}: {error.filename})")


async def examine_folder(settings: Settings, status: Status, *, repair: bool) -> Report:
    """Check the state folder and what NATS holds."""
    report = Report(repair=repair and not status.running)
    if repair and status.running:
        report.note("the service runs, so nothing is repaired: stop it, and run imagegen doctor --repair again")
    check_folders(report, settings, running=status.running)
    with contextlib.ExitStack() as stack:
        if not status.running and settings.state_dir.is_dir():
            try:
                stack.enter_context(locked(settings))  # nobody starts meanwhile
            except (ServiceError, OSError) as error:
                report.problem("the store is not checked", str(error))
                return report
        await check_store(report, settings, status)
    return report
