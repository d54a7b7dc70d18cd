"""A token that callers must present, so that other users of this machine cannot use the ComfyUI.

Programs send it as `Authorization: Bearer`. A browser gets a cookie when the editor is opened once at `/?token=…`.
"""

from __future__ import annotations

import hmac

from aiohttp import web

COOKIE = "neurolux_token"
PARAMETER = "token"
PAGE = "/"


class TokenCheck:
    """Whether requests carry the token."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()

    def answer(self, request: web.Request) -> web.StreamResponse | None:
        """The answer to a request without the token, or the one that hands a browser its cookie; None: go on."""
        if self._is_token(request.query.get(PARAMETER)) and request.path == PAGE and request.method == "GET":
            # Away with the token from the address bar and the history.
            page = web.Response(status=303, headers={"Location": PAGE, "Cache-Control": "no-store"})
            # Cookies know no ports, so the name carries it: two ComfyUIs on one machine keep their own.
            page.set_cookie(cookie_name(request), self._token.decode(), httponly=True, samesite="Lax", path=PAGE)
            return page
        given = request.headers.get("Authorization", "")
        scheme, _, bearer = given.partition(" ")
        if scheme.lower() == "bearer" and self._is_token(bearer.strip()):
            return None
        if self._is_token(request.cookies.get(cookie_name(request))):
            return None
        message = "this ComfyUI wants its token: open the editor once at /?token=…, or send Authorization: Bearer"
        document = {"error": {"code": "unauthorized", "message": message}}
        return web.json_response(document, status=401, headers={"WWW-Authenticate": "Bearer"})

    def _is_token(self, given: str | None) -> bool:
        return given is not None and hmac.compare_digest(given.encode("utf-8", "replace"), self._token)


def cookie_name(request: web.Request) -> str:
    """The name of the cookie at this server's port."""
    port = request.transport.get_extra_info("sockname")[1] if request.transport is not None else ""
    return f"{COOKIE}_{port}"
