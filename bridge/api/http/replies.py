"""What the REST endpoints share: the objects that they ask, and how answers are written."""

from __future__ import annotations

import re
from collections.abc import Mapping

from aiohttp import web
from pydantic import BaseModel

from bridge.broker.fleet import Roster
from bridge.broker.probe import StoreProbe
from bridge.contract import JOB_ID_PATTERN, ErrorBody, ErrorEnvelope, UnknownJob, shown
from bridge.gateway.controls import Controls
from bridge.gateway.generation import Generation
from bridge.gateway.index import JobIndex

GENERATION = web.AppKey("generation", Generation)
CONTROLS = web.AppKey("controls", Controls)
INDEX = web.AppKey("index", JobIndex)
PROBE = web.AppKey("probe", StoreProbe)
ROSTER = web.AppKey("roster", Roster)


def reply(model: BaseModel, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A model as JSON."""
    return web.json_response(text=model.model_dump_json(), status=status, headers=headers)


def error_reply(status: int, code: str, message: str) -> web.Response:
    """An error that is none of the bridge's own, in the envelope."""
    body = ErrorEnvelope(error=ErrorBody(code=code, message=message))
    return web.json_response(text=body.model_dump_json(), status=status)


def job_id_of(request: web.Request) -> str:
    """The job id in the path. Raises UnknownJob where it cannot be one."""
    job_id = request.match_info["job_id"]
    if not re.fullmatch(JOB_ID_PATTERN, job_id):
        raise UnknownJob(f"{shown(job_id)} is not a job id: a lowercase UUID is", field="job_id")
    return job_id
