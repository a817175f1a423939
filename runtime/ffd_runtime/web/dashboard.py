"""The site's routes: page, state, pictures, health and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from ..core.text import printable
from .auth_middleware import policy, source_hash
from .dashboard_state import DashboardState
from .metrics import CONTENT_TYPE
from .snapshots import SnapshotRenderer, encode

# Requests for pictures that are held or drawn at once: those of sixteen pages, which ask for four
# at a time if they show as many sources.
MAX_PICTURE_REQUESTS = 64
# Seconds without a tick of the run's loop after which it is taken to hang.
STALL_TIMEOUT_SECONDS = 5.0


class Dashboard:
    """Answers requests; `app` is the ASGI application.

    Args:
        board: what is shown.
        pictures: the board's, as JPEGs.
        facts: what the page says of the run; `run` differs from run to run.
    """

    def __init__(
        self, board: DashboardState, pictures: SnapshotRenderer, facts: Mapping[str, str]
    ) -> None:
        self._state = board
        self._snapshots = pictures
        self._facts = facts
        self._asked = 0
        self._page = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
        self.app = Starlette(
            routes=[
                Route("/", self.page),
                Route("/state", self.state),
                Route("/picture/{index:int}.jpg", self.picture),
                Route("/verdict/{number:int}.jpg", self.thumbnail),
                Route("/healthz", self.health),
                Route("/metrics", self.metrics),
            ]
        )

    async def page(self, request: Request) -> Response:
        """The page itself, the same for everybody: what it shows, it asks for."""
        style = self._page.partition("<style>")[2].partition("</style>")[0]
        script = self._page.partition("<script>")[2].partition("</script>")[0]
        allowed = policy(
            style,
            f"script-src {source_hash(script)}",
            "img-src 'self' blob: data:",
            "connect-src 'self'",
            "form-action 'none'",
        )
        return HTMLResponse(self._page, headers={"Content-Security-Policy": allowed})

    async def state(self, request: Request) -> Response:
        """Sources, faces and verdicts; of those only what came `?after=` a number."""
        return JSONResponse({**self._facts, **self._state.state(_number(request, "after") or 0)})

    async def picture(self, request: Request) -> Response:
        """A source's newest picture: at once, or as soon as it is another than `?after=`.

        204 if there is no other for a while, 503 if too many viewers ask.
        """
        index = request.path_params["index"]
        if self._state.view(index) is None:
            raise HTTPException(404)
        if self._asked >= MAX_PICTURE_REQUESTS:
            raise HTTPException(503, "too many viewers", {"Retry-After": "2"})
        self._asked += 1
        try:
            found = await self._snapshots.newest(
                index, request.query_params.get("heatmap") == "1", _number(request, "after")
            )
        finally:
            self._asked -= 1
        if found is None:
            return Response(status_code=204)
        headers = {"FFD-Picture": str(found.number)}
        return Response(found.jpeg, media_type="image/jpeg", headers=headers)

    async def thumbnail(self, request: Request) -> Response:
        """What a verdict of the history was about."""
        image = self._state.thumbnail(request.path_params["number"])
        if image is None:
            raise HTTPException(404)
        return Response(encode(image), media_type="image/jpeg")

    async def health(self, request: Request) -> Response:
        """200 as long as the run's loop ticks, 503 else.

        A camera that is away is no reason to restart the run, which tries it again itself; with
        `?strict=1` it is 503 too. Who has not given the token is told no more than that.
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
        """For Prometheus."""
        text = self._state.metrics(self._snapshots.drawn)
        return Response(text, headers={"Content-Type": CONTENT_TYPE})


def _number(request: Request, name: str) -> int | None:
    text = request.query_params.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 16 else None
