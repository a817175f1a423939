"""The routes of the dashboard: page, state, images, health and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from ..core.text import printable
from ..outputs.html_page import encode_image
from .auth_middleware import content_security_policy, read_page
from .dashboard_state import DashboardState
from .metrics import CONTENT_TYPE
from .snapshots import JPEG_OPTIONS, SnapshotRenderer

# Concurrent requests for images: sixteen open pages with four requests each.
MAX_IMAGE_REQUESTS = 64
# Without a tick for this time, the run's loop is considered hung.
STALL_TIMEOUT_SECONDS = 5.0


class Dashboard:
    """The ASGI application, in `app`.

    Args:
        facts: version, model and an ID of the run, for the page.
    """

    def __init__(
        self, state: DashboardState, snapshots: SnapshotRenderer, facts: Mapping[str, str]
    ) -> None:
        self._state = state
        self._snapshots = snapshots
        self._facts = facts
        self._page = read_page("page.html")
        self.app = Starlette(
            routes=[
                Route("/", self.page),
                Route("/state", self.state),
                Route("/image/{index}.jpg", self.image),
                Route("/verdict/{number}.jpg", self.thumbnail),
                Route("/healthz", self.health),
                Route("/metrics", self.metrics),
            ]
        )

    async def page(self, request: Request) -> Response:
        """Return the page; it requests its data from the other routes."""
        allowed = content_security_policy(
            self._page, "img-src 'self' blob: data:", "connect-src 'self'", "form-action 'none'"
        )
        return HTMLResponse(self._page, headers={"Content-Security-Policy": allowed})

    async def state(self, request: Request) -> Response:
        """Return sources, faces and label changes, of these only the ones `?after=` a number."""
        return JSONResponse({**self._facts, **self._state.state(_number(request, "after") or 0)})

    async def image(self, request: Request) -> Response:
        """Return a source's newest image, or wait for one that is newer than `?after=`.

        The status is 204 if no snapshot is ready in time, and 503 if there are too many requests.
        """
        index = _parse_number(request.path_params["index"])
        if index is None or self._state.view(index) is None:
            raise HTTPException(404)
        if self._snapshots.waiting >= MAX_IMAGE_REQUESTS:
            raise HTTPException(503, "too many viewers", {"Retry-After": "2"})
        heatmap = request.query_params.get("heatmap") == "1"
        found = await self._snapshots.newest(index, heatmap, _number(request, "after"))
        if found is None:
            return Response(status_code=204)
        headers = {"FFD-Image": str(found.number)}
        return Response(found.jpeg, media_type="image/jpeg", headers=headers)

    async def thumbnail(self, request: Request) -> Response:
        """Return the thumbnail of a label change."""
        number = _parse_number(request.path_params["number"])
        image = None if number is None else self._state.thumbnail(number)
        if image is None:
            raise HTTPException(404)
        jpeg = encode_image(".jpg", image, JPEG_OPTIONS)
        return Response(jpeg, media_type="image/jpeg")

    async def health(self, request: Request) -> Response:
        """Return 200 while the run's loop ticks, otherwise 503.

        A camera that fails is not a reason to restart the run, which reconnects by itself. With
        `?strict=1` the status is then 503, too. Without the token, only the status is returned.
        """
        ticked, healths = self._state.health()
        running = ticked is not None and ticked <= STALL_TIMEOUT_SECONDS
        absent = [health for health in healths if health.state not in ("playing", "ended")]
        strict = request.query_params.get("strict") == "1"
        ok = running and not (strict and absent)
        answer: dict[str, Any] = {"status": "ok" if ok else "not ok"}
        if request.scope["authorised"]:
            answer["ticked"] = None if ticked is None else round(ticked, 3)
            answer["not_playing"] = [
                {
                    "source": printable(health.source),
                    "state": health.state,
                    "error": health.error and printable(health.error),
                }
                for health in absent
            ]
        return JSONResponse(answer, 200 if ok else 503)

    async def metrics(self, request: Request) -> Response:
        """Return the metrics for Prometheus."""
        text = self._state.metrics(self._snapshots.drawn)
        return Response(text, headers={"Content-Type": CONTENT_TYPE})


def _number(request: Request, name: str) -> int | None:
    return _parse_number(request.query_params.get(name, ""))


def _parse_number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 16 else None
