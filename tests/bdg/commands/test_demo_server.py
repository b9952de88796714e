"""The page to try weights on: what it answers to pictures, to what is none, and to too many; no browser."""

import base64
import io
import json
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from PIL import Image

from bdg.cli import main
from bdg.commands.compose import compose
from bdg.commands.demo_server import Rate, RefusedError, application, example, listening, serve
from bdg.commands.restore import load_restorer
from bdg.restoration import PACKAGED
from datamodules.images import Picture, encode, read_image

httpx = pytest.importorskip("httpx", reason="needs the extra 'dev'")
pytest.importorskip("starlette", reason="needs the extra 'server'")

Client = Any
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
PNG = encode("x.png", Picture(PIXELS))


def aside(function: Callable[..., Any], *arguments: Any) -> Any:
    """In another thread: in this one a browser of other tests may hold an event loop."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *arguments).result()


def served(ask: Callable[[Client], Awaitable[Any]], *words: str) -> Any:
    """What `ask` returns, given a client of the application with these words."""
    config = compose("demo_server", ["device=cpu", *words])
    app = application(load_restorer(config), config)

    async def run() -> Any:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost:8000") as client:
            return await ask(client)

    return aside(anyio.run, run)


def posted(data: bytes, *words: str, query: str = "", **headers: str) -> Any:
    return served(lambda client: client.post(f"/restore{query}", content=data, headers=headers), *words)


def picture_of(uri: str) -> Picture:
    return read_image(base64.b64decode(uri.removeprefix("data:image/png;base64,")))


def test_a_picture_comes_back_degraded_and_restored() -> None:
    said = posted(PNG, query="?steps=1").json()

    assert said["size"] == [56, 40]
    assert np.array_equal(picture_of(said["degraded"]).array, PIXELS)
    assert picture_of(said["restored"]).array.shape == PIXELS.shape
    assert said["settings"]["sample_steps"] == 1


def test_strength_0_leaves_the_picture_as_it_is() -> None:
    said = posted(PNG, query="?steps=1&strength=0").json()

    assert said["degraded"] == said["restored"]


def test_the_explainer_of_the_weights_speaks() -> None:
    thoughts = posted(PNG, query="?steps=1").json()["explanation"]

    assert sum(thoughts["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    assert next(iter(thoughts["probabilities"])) == "noise"  # as white noise looks


@pytest.mark.parametrize("query", ["?steps=0", "?steps=99", "?steps=x", "?strength=1.5", "?strength=nan"])
def test_settings_out_of_bounds_are_refused(query: str) -> None:
    answer = posted(PNG, query=query)

    assert answer.status_code == 400
    assert f"{query[1:]}: give" in answer.json()["error"]


def animated() -> bytes:
    file = io.BytesIO()
    frames = [Image.new("RGB", (32, 32), color) for color in ("red", "blue")]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "status", "message"),
    [
        (b"", 415, "the file: not an image"),
        (b"hello", 415, "the file: not an image"),
        (PNG[: len(PNG) // 2], 415, "the image is cut off or damaged"),
        (animated(), 415, "holds 2 pictures"),
        (
            encode("x.png", Picture(np.zeros((1001, 1000, 3), np.uint8))),
            413,
            "1000 x 1001 pixels, more than 1 megapixels",
        ),
    ],
    ids=["empty", "text", "half", "animated", "large"],
)
def test_what_is_no_picture_is_answered(data: bytes, status: int, message: str) -> None:
    answer = posted(data, "max_megapixels=1")

    assert answer.status_code == status
    assert message in answer.json()["error"]


def test_uploads_that_are_too_large_are_refused_before_they_are_read() -> None:
    read = []

    async def endless() -> Any:
        for _ in range(1000):
            read.append(1)
            yield b"x" * 10_000

    told = posted(b"x" * 200_000, "max_mb=0.1")
    streamed = served(lambda client: client.post("/restore", content=endless()), "max_mb=0.1")

    assert [told.status_code, streamed.status_code] == [413, 413]
    assert "larger than 0.1 MB" in told.json()["error"]


def test_a_client_that_asks_too_often_must_wait() -> None:
    async def ask(client: Client) -> Any:
        return [await client.post("/restore", content=b"hello") for _ in range(3)]

    answers = served(ask, "per_minute=2")

    assert [answer.status_code for answer in answers] == [415, 415, 429]
    assert 1 <= int(answers[2].headers["retry-after"]) <= 60


def test_the_rate_is_of_the_last_minute_and_of_each_client() -> None:
    now = [0.0]
    rate = Rate(1, clock=lambda: now[0])
    rate.count("a")
    rate.count("b")
    with pytest.raises(RefusedError, match="try again in 60 s"):
        rate.count("a")

    now[0] = 60

    rate.count("a")


def test_one_picture_is_restored_at_a_time_and_few_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    inside, most, go = [0], [0], threading.Event()

    def slow(self: Any, data: bytes, changes: Any) -> bytes:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        go.wait(10)
        inside[0] -= 1
        return b"{}"

    monkeypatch.setattr("bdg.commands.demo_server.Demo.answer", slow)

    async def ask(client: Client) -> Any:
        answers: list[Any] = []

        async def one() -> None:
            answers.append(await client.post("/restore", content=PNG))
            go.set()  # the first answer is the refused one: the others wait for it

        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(one)
        return answers

    answers = served(ask, "queue=2")

    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 503]
    assert "pictures are waiting" in next(answer for answer in answers if answer.status_code == 503).json()["error"]
    assert most[0] == 1


def test_the_page_allows_only_its_own_code() -> None:
    answer = served(lambda client: client.get("/"))

    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert policy.count("'sha256-") == 2  # a script and a style
    assert "script-src 'unsafe" not in policy


def test_the_page_names_weights_but_no_folder() -> None:
    text = served(lambda client: client.get("/")).text

    assert "demo.safetensors, stage restoration" in text
    assert str(PACKAGED.parent) not in text


def test_pages_of_others_may_not_ask() -> None:
    assert posted(b"hello", origin="http://evil").status_code == 403
    assert posted(b"hello", origin="http://localhost:8000").status_code == 415


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("192.168.0.7:8000", 200),  # which no page of others can have
        ("Demo.Example.:8000", 200),
        (socket.gethostname(), 200),
        ("evil.com:8000", 421),
        ("127.0.0.1.evil.com", 421),
        ("localhost@evil.com", 421),
        ("", 421),
    ],
)
def test_a_name_of_others_that_leads_here_is_refused(host: str, status: int) -> None:
    async def ask(client: Client) -> Any:
        headers = {"host": host, "origin": f"http://{host}"}
        return [
            await client.get("/", headers=headers),
            await client.post("/restore", headers=headers, content=b"hello"),
            await client.get("/examples/none", headers=headers),
        ]

    answers = served(ask, "names=[demo.example]")

    assert [answer.status_code for answer in answers] == ([200, 415, 404] if status == 200 else [421] * 3)


def test_examples_are_degraded_photographs() -> None:
    answer = served(lambda client: client.get("/examples/noise"))

    assert read_image(answer.content).array.shape == (341, 512, 3)
    assert served(lambda client: client.get("/examples/none")).status_code == 404
    assert example("noise") == answer.content


def test_other_addresses_and_methods_get_json() -> None:
    assert served(lambda client: client.get("/nothing")).json() == {"error": "Not Found"}
    assert served(lambda client: client.get("/restore")).status_code == 405


# --- connections ---


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Of a server on which connections are idle after 0.1 s and a client has two; its answer takes 0.4 s and says who asks."""
    pytest.importorskip("uvicorn", reason="needs the extra 'server'")
    monkeypatch.setattr("bdg.commands.connections.IDLE_S", 0.1)
    monkeypatch.setattr("bdg.commands.connections.MOST_OF_ONE", 2)

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await anyio.sleep(0.4 if scope["path"] == "/slow" else 0)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": f"of {scope['client'][0]}".encode()})

    stop = threading.Event()
    with listening("127.0.0.1", 0) as sock:
        serving = threading.Thread(target=serve, args=(answer, sock, None, stop))
        serving.start()
        yield sock.getsockname()[1]
        stop.set()
        serving.join()


def connected(port: int, text: str = "", client: str = "127.0.0.1") -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), 5, source_address=(client, 0))
    if text:
        sock.sendall(text.replace("\n", "\r\n").encode())
    return sock


def told(sock: socket.socket) -> str:
    """All that comes until the server closes the connection."""
    with sock, suppress(ConnectionResetError):
        return b"".join(iter(lambda: sock.recv(4096), b"")).decode()
    return "closed"


GET = "GET {} HTTP/1.1\nHost: localhost\n{}\n"


@pytest.mark.parametrize("text", ["", "GET / HTTP/1.1\nHost: loc", GET.format("/", "Content-Length: 9\n")])
def test_a_connection_that_asks_nothing_is_closed(text: str, port: int) -> None:
    told(connected(port, text))


def test_a_connection_that_says_a_little_now_and_then_is_closed(port: int) -> None:
    def trickle() -> None:
        for _ in range(50):
            sock.sendall(b"G")
            time.sleep(0.02)

    with connected(port, GET.format("/", "")) as sock, pytest.raises(ConnectionError):
        trickle()


def test_an_answer_that_takes_long_is_waited_for(port: int) -> None:
    assert "of 127.0.0.1" in told(connected(port, GET.format("/slow", "Connection: close\n")))


def test_a_client_leaves_room_for_others(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bdg.commands.connections.IDLE_S", 60)
    greedy = [connected(port, client="127.0.0.2") for _ in range(70)]
    assert "of 127.0.0.1" in told(connected(port, GET.format("/", "Connection: close\n")))
    for sock in greedy:
        sock.close()


def test_a_client_is_not_who_it_says_it_is(port: int) -> None:
    text = GET.format("/", "X-Forwarded-For: 9.9.9.9\nConnection: close\n")
    assert "of 127.0.0.1" in told(connected(port, text))


# --- the command ---


def test_a_port_in_use_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with listening("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]

        assert main(["demo-server", f"port={port}"]) == 1

    assert f"port={port} cannot be listened on" in (said := capsys.readouterr().err)
    assert f"add port={port + 1}" in said


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("bdg.commands.demo_server.find_spec", lambda name: None if name == "uvicorn" else sys)

    assert main(["demo-server"]) == 1

    assert "needs uvicorn, which is not installed: pip install 'bdg[server]'" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["per_minute=0", "max_mb=-1", "queue=-1", "max_steps=0"])
def test_limits_must_be_limits(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo-server", word]) == 1
    assert f"{word}: give" in capsys.readouterr().err


def test_it_serves_until_its_time_is_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert aside(main, ["demo-server", "port=0", "stop_after_s=0.1", f"json={tmp_path}/said.json"]) == 0

    said = json.loads((tmp_path / "said.json").read_text())
    assert said["url"].startswith("http://127.0.0.1:")
    assert said["url"] in capsys.readouterr().out
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", int(said["url"].rpartition(":")[2])), 1)
