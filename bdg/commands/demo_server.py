"""`bdg demo-server`: a page to try some weights on one's own pictures, which are kept nowhere but in memory, until answered."""

import base64
import hashlib
import io
import json
import math
import re
import socket
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

import bdg
import datamodules
from bdg.commands.compose import build, compose
from bdg.commands.explain import explainer_of, explanations, is_color_degradation, plain
from bdg.commands.request import Request as Command
from bdg.commands.restore import load_restorer, restoring
from bdg.restoration import Restorer
from datamodules.degradations.base import from_bytes, to_bytes
from datamodules.images import Picture, encode, read_image, upright_size
from datamodules.restored import from_image, to_image
from jobs.report import demo_page
from jobs.run import write_text

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

INSTALL = "pip install 'bdg[server]'"
UPLOAD_S = 30
"""In which an upload must have come."""
CLIENTS = 10_000
"""That are remembered, for the rate."""
EXAMPLES = {"rain": "picos_de_europa", "haze": "stream", "noise": "coffee", "low_light": "flowers"}
"""Degradation -> the packaged photograph that shows it."""
EXAMPLE_SEVERITY = 4.0
NAME = "picture"
"""Of every upload: with the seed it fixes the noise."""


class RefusedError(Exception):
    """What a client is told instead of a picture. status: of HTTP; retry_s: when to come again."""

    def __init__(self, status: int, message: str, retry_s: float | None = None) -> None:
        super().__init__(message)
        self.status, self.retry_s = status, retry_s


@dataclass
class Rate:
    """How many pictures each client had within the last minute."""

    per_minute: int
    clock: Callable[[], float] = time.monotonic
    seen: dict[str, deque[float]] = field(default_factory=dict)

    def count(self, client: str) -> None:
        """Counts a picture, or raises RefusedError."""
        now = self.clock()
        times = self.seen.pop(client, deque())
        while times and now - times[0] >= 60:
            times.popleft()
        self.seen[client] = times  # now the last that would be forgotten
        if len(times) >= self.per_minute:
            wait = 60 - (now - times[0])
            raise RefusedError(
                429, f"more than {self.per_minute} pictures a minute: try again in {math.ceil(wait)} s", wait
            )
        times.append(now)
        while len(self.seen) > CLIENTS:
            del self.seen[next(iter(self.seen))]


def run(config: DictConfig, request: Command) -> None:
    need_packages()
    for name, least in (("max_mb", 0), ("max_megapixels", 0), ("per_minute", 1), ("queue", 0), ("max_steps", 1)):
        if config[name] < least:
            raise ValueError(f"{name}={config[name]}: give {least} or more")
    restorer = load_restorer(config)
    app = application(restorer, config)
    with listening(config.host, config.port) as sock:
        host, port = sock.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        print(f"{url} restores with {restorer}; Ctrl-C ends it", flush=True)
        if config.json:
            said = {"url": url, "weights": str(restorer)} | {name: config[name] for name in LIMITS}
            write_text(Path(config.json), json.dumps(said, indent=1) + "\n")
        serve(app, sock, config.stop_after_s)


LIMITS = ("max_mb", "max_megapixels", "max_steps", "per_minute", "queue")


def need_packages() -> None:
    """Raises ValueError where the extra is missing."""
    if missing := [name for name in ("starlette", "uvicorn", "jinja2") if find_spec(name) is None]:
        raise ValueError(f"bdg demo-server needs {', '.join(missing)}, which is not installed: {INSTALL}")


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens; OSError says what to type where it cannot."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise OSError(
            f"host={host} port={port} cannot be listened on ({error}): if it is in use, add port={port + 1}, or port=0 for "
            "any that is free"
        ) from None


def serve(app: "Starlette", sock: socket.socket, stop_after_s: float | None, stop: Event | None = None) -> None:
    """Answers until Ctrl-C, `stop`, or so many seconds have passed."""
    import uvicorn

    from bdg.commands.connections import MOST, Connection

    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            proxy_headers=False,  # anybody may send them, and with them be another client in each request
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=MOST,
        )
    )

    def end() -> None:
        (stop or Event()).wait(stop_after_s)
        server.should_exit = True

    if stop or stop_after_s is not None:
        Thread(target=end, daemon=True).start()
    server.run(sockets=[sock])


def application(restorer: Restorer, config: DictConfig) -> "Starlette":
    """The web application, which knows no socket."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    demo = Demo(restorer, config)

    async def refused(_: Any, error: Exception) -> JSONResponse:
        assert isinstance(error, RefusedError)
        again = {} if error.retry_s is None else {"Retry-After": f"{math.ceil(error.retry_s)}"}
        return JSONResponse({"error": str(error)}, error.status, again)

    async def not_found(_: Any, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return JSONResponse({"error": error.detail}, error.status_code)

    app = Starlette(
        routes=[
            Route("/", demo.page),
            Route("/restore", demo.restore, methods=["POST"]),
            Route("/examples/{name}", demo.example),
        ],
        exception_handlers={RefusedError: refused, HTTPException: not_found},
    )
    return app


class Demo:
    """What the routes answer with; one picture is restored at a time."""

    def __init__(self, restorer: Restorer, config: DictConfig) -> None:
        self.restorer, self.config = restorer, config
        self.rate = Rate(config.per_minute)
        self.names = {name.lower() for name in ("localhost", socket.gethostname(), config.host, *config.names)}
        self.inside = 0  # pictures that wait or are being restored
        self.turn: Any = None  # made in the event loop that serves
        self.explains = has_explainer(restorer)
        _, settings = restoring(restorer, config)
        self.max_steps = min(config.max_steps, restorer.denoise.diffusion.num_steps)
        html = demo_page(
            {
                "title": "Restore a picture",
                "version": bdg.__version__,
                "weights": named(restorer),
                "steps": min(settings["sample_steps"] or 3, self.max_steps),
                "strength": config.get("strength", 1),
                "explains": self.explains,
                "examples": list(EXAMPLES),
                "images": [],
                **{name: config[name] for name in LIMITS},
                "max_steps": self.max_steps,
            }
        )
        self.html = html.encode()
        self.headers = security(html)

    async def page(self, request: "Request") -> "Response":
        from starlette.responses import Response

        check_host(request, self.names)
        return Response(self.html, media_type="text/html", headers=self.headers)

    async def example(self, request: "Request") -> "Response":
        """A packaged photograph, degraded."""
        from anyio import to_thread
        from starlette.responses import Response

        check_host(request, self.names)
        name = request.path_params["name"]
        if name not in EXAMPLES:
            raise RefusedError(404, f"no example '{name}': there are {', '.join(EXAMPLES)}")
        data = await to_thread.run_sync(example, name)
        return Response(data, media_type="image/png", headers={"Cache-Control": "max-age=3600"})

    async def restore(self, request: "Request") -> "Response":
        """The picture in the body, restored: data URIs of both, and what the explainer thinks."""
        from anyio import CapacityLimiter, to_thread
        from starlette.responses import Response

        check_host(request, self.names)
        check_origin(request)
        changes = self.changes(request)
        self.rate.count(request.client.host if request.client else "")
        if self.inside > self.config.queue:
            raise RefusedError(503, f"{self.inside} pictures are waiting already: try again in a minute", 30)
        self.inside += 1
        try:
            data = await received(request, self.config.max_mb)
            self.turn = self.turn or CapacityLimiter(1)
            answer = await to_thread.run_sync(self.answer, data, changes, limiter=self.turn)
        finally:
            self.inside -= 1
        return Response(answer, media_type="application/json", headers={"Cache-Control": "no-store"})

    def changes(self, request: "Request") -> dict[str, Any]:
        """The settings that a client may choose."""
        steps = number(request, "steps", 1, self.max_steps)
        strength = number(request, "strength", 0, 1)
        return {"sample_steps": None if steps is None else round(steps), "strength": strength}

    def answer(self, data: bytes, changes: dict[str, Any]) -> bytes:
        picture = opened(data, self.config.max_megapixels)
        chosen = {name: value for name, value in changes.items() if value is not None}
        begun = time.monotonic()
        restore, settings = restoring(self.restorer, OmegaConf.merge(self.config, chosen))  # type: ignore[arg-type]
        x_lq = to_image([picture])
        found = explanations(self.config, self.restorer, x_lq)[0] if self.explains else None
        if found and self.config.keep_color == "auto":
            restore.keywords["keep_color"] = not is_color_degradation(found)
        try:
            (restored,) = from_image([picture], restore(x_lq, [NAME]))
        except ValueError as error:
            raise RefusedError(503, f"it cannot be restored here: {error}") from None
        said = {
            "size": picture.array.shape[1::-1],
            "degraded": uri(picture),
            "restored": uri(restored),
            "seconds": round(time.monotonic() - begun, 2),
            "settings": {name: settings[name] for name in ("sampler", "sample_steps", "strength") if name in settings},
            "explanation": plain(found) if found else None,
        }
        return json.dumps(said).encode()


def named(restorer: Restorer) -> str:
    """The weights without the folder they lie in, which is nobody's business."""
    name = restorer.path.name if restorer.path else "weights in memory"
    return f"{name}, stage {restorer.about.get('stage')}, identity {restorer.about.get('identity')}"


def has_explainer(restorer: Restorer) -> bool:
    """Whether there is one; ValueError for one that is of other weights."""
    try:
        explainer_of(restorer)
    except FileNotFoundError:
        return False
    return True


def check_host(request: "Request", names: Collection[str]) -> None:
    """A page of another server cannot be taken for ours because its name suddenly leads to this machine (DNS rebinding).

    Addresses are no names, so that nobody else can have them led here.
    """
    host = request.headers.get("host", "")
    name = re.sub(r":\d*$", "", host).lower().rstrip(".")
    if name not in names and not is_address(name.removeprefix("[").removesuffix("]")):
        raise RefusedError(
            421, f"{host[:100]} is no name of this server: whoever runs it gives its names with names=[NAME]"
        )


def is_address(text: str) -> bool:
    try:
        return bool(ip_address(text))
    except ValueError:
        return False


def check_origin(request: "Request") -> None:
    """Pages of other servers may not send pictures here with their visitors' browsers."""
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
        raise RefusedError(403, f"a page of {origin} may not ask this server: open its own page")


def number(request: "Request", name: str, low: float, high: float) -> float | None:
    """A value of the query; RefusedError for what is none, or out of bounds."""
    text = request.query_params.get(name)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise RefusedError(400, f"{name}={text[:20]}: give {low:g} to {high:g}")
    return value


async def received(request: "Request", max_mb: float) -> bytes:
    """The body, if it is no larger, and here soon."""
    from anyio import fail_after

    limit = int(max_mb * 1e6)
    too_large = RefusedError(
        413, f"the file is larger than {max_mb:g} MB: make it smaller, or restore it with bdg restore"
    )
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > limit:
        raise too_large
    data = bytearray()
    try:
        with fail_after(UPLOAD_S):
            async for part in request.stream():
                data += part
                if len(data) > limit:
                    raise too_large
    except TimeoutError:
        raise RefusedError(408, f"the file did not arrive within {UPLOAD_S} s: make it smaller") from None
    return bytes(data)


def opened(data: bytes, max_megapixels: float) -> Picture:
    """The picture in an upload; its size is read before it is decoded."""
    size = upright_size(io.BytesIO(data))
    if size and size[0] * size[1] > max_megapixels * 1e6:
        raise RefusedError(
            413,
            f"the picture has {size[1]} x {size[0]} pixels, more than {max_megapixels:g} megapixels: make it smaller, or "
            "restore it with bdg restore",
        )
    try:
        return read_image(data, "the file")
    except ValueError as error:
        raise RefusedError(415, str(error)) from None


def uri(picture: Picture) -> str:
    return "data:image/png;base64," + base64.b64encode(encode("picture.png", picture)).decode()


def example(name: str) -> bytes:
    path = Path(datamodules.__path__[0]) / "photographs" / f"{EXAMPLES[name]}.jpg"
    node = compose("degrade", [f"input={path}", "output=x", f"degradation={name}"]).degradation[name]
    x_lq, _ = build(node, severity=EXAMPLE_SEVERITY)(from_bytes(read_image(path).to_uint8()), np.random.default_rng(0))
    return encode("example.png", Picture(to_bytes(x_lq)))


def security(html: str) -> dict[str, str]:
    """Headers of the page: only what is written in it runs, and nothing is asked of other servers."""
    inline = {"script": "'self'", "style": "'self'"}
    for kind in inline:
        texts = re.findall(rf"<{kind}>(.*?)</{kind}>", html, re.S)
        digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
        inline[kind] = " ".join(f"'sha256-{digest}'" for digest in digests)
    policy = (
        f"default-src 'none'; script-src {inline['script']}; style-src {inline['style']}; style-src-attr 'unsafe-inline'; "
        "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
