"""The headers of ComfyUI's answers: no guessed types, no frames of other sites, and no user's file shown as a page.

ComfyUI serves uploads under its own origin. HTML, SVG or XML among them could run a script there, with all rights of
the editor (GHSA-53g8-45wq-pcv8, GHSA-rj8c-c4p8-3c5h). Such files become downloads.
"""

from __future__ import annotations

from aiohttp import web

USER_FILES = ("/view", "/viewvideo")
USER_FOLDERS = ("/vhs/", "/userdata/", "/v2/userdata", "/experiment/models/", "/assets/", "/internal/files/")
"""Routes, without `/api`, that serve files which a user, a node or another program has written, and their beginnings.
Other packs' pages are theirs to answer for."""
SHOWN = frozenset({
    "application/json", "text/plain", "text/css", "text/csv", "text/markdown",
    "image/png", "image/apng", "image/jpeg", "image/webp", "image/gif", "image/bmp", "image/x-ms-bmp", "image/avif",
    "image/tiff", "image/heic", "image/heif", "image/x-icon", "image/vnd.microsoft.icon",
})  # fmt: skip
"""Types that a browser shows without running anything, besides all of `audio/` and `video/`."""
SVG = "image/svg+xml"
BINARY = "application/octet-stream"
DISPOSITION = "Content-Disposition"
POLICY = "Content-Security-Policy"


def core_route(request: web.Request) -> str:
    """The pattern of the route that answers, without the `/api` that every route exists under as well."""
    resource = request.match_info.route.resource
    pattern = resource.canonical if resource is not None else request.path
    while pattern.startswith("/api/"):  # a route under /api has a copy under /api/api
        pattern = pattern.removeprefix("/api")
    return pattern


def protect(request: web.Request, response: web.StreamResponse, *, frames: bool) -> None:
    """Set the headers before they are sent. `frames`: whether pages of other sites are kept from framing this one.

    `same-origin` for the referrer, not `no-referrer`: with that, browsers send `Origin: null` with the editor's own
    requests.
    """
    headers = response.headers
    headers["X-Content-Type-Options"] = "nosniff"
    headers.setdefault("Referrer-Policy", "same-origin")
    if frames and "frame-ancestors" not in headers.get(POLICY, ""):
        headers.setdefault("X-Frame-Options", "SAMEORIGIN")
    route = core_route(request)
    if (route in USER_FILES or route.startswith(USER_FOLDERS)) and not _shown(response.content_type):
        as_download(request, response)


def _shown(content_type: str) -> bool:
    content_type = content_type.lower()
    return content_type in SHOWN or content_type.startswith(("audio/", "video/"))


def as_download(request: web.Request, response: web.StreamResponse) -> None:
    """Have the browser save the file. Programs and the editor's scripts, which read its bytes, notice nothing."""
    headers = response.headers
    name = headers.get(DISPOSITION, "")
    if not name.lower().startswith("attachment"):
        headers[DISPOSITION] = f"attachment; {name}" if name.lower().startswith("filename") else "attachment"
    headers[POLICY] = "sandbox; default-src 'none'; style-src 'unsafe-inline'"
    headers["Vary"] = ", ".join(filter(None, [headers.get("Vary"), "Sec-Fetch-Dest"]))
    # In an <img>, an SVG runs no script; under another type it would not be shown.
    if not (response.content_type.lower() == SVG and request.headers.get("Sec-Fetch-Dest") == "image"):
        headers["Content-Type"] = BINARY
