"""A dashboard that does what a test tells it: answers, refuses, and breaks connections in the middle.

It speaks as much of Ray's protocol for jobs as following one needs, so that it takes no Ray.
It does not know what is asked of it next.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from aiohttp import web

JOB = "raysubmit_x"
LOG = "one\ntwo\nthree\n"


class Dashboard:
    """One job and its log; what is scripted is done first, one question after the other."""

    def __init__(self) -> None:
        self.address = ""
        self.tails: list[str] = []
        """What connections to the log tell before they break; the one after the last tells all."""
        self.lost = 0
        """How many questions about the job find their connection cut."""
        self.status = 200
        """Of all answers."""

    async def version(self, _: web.Request) -> web.Response:
        return self._answer({"ray_version": "2.60.0", "ray_commit": "", "version": "4", "session_name": ""})

    async def job(self, request: web.Request) -> web.Response:
        if self.lost:
            self.lost -= 1
            _cut(request)
        if request.match_info["job"] != JOB:
            return web.Response(status=404, text="no such job")
        state = "RUNNING" if self.tails else "SUCCEEDED"
        told = {
            "type": "SUBMISSION",
            "submission_id": JOB,
            "status": state,
            "entrypoint": "python jobs/run.py",
        }
        return self._answer(told)

    async def jobs(self, _: web.Request) -> web.Response:
        return self._answer([])

    async def log(self, _: web.Request) -> web.Response:
        return self._answer({"logs": LOG})

    async def tail(self, request: web.Request) -> web.StreamResponse:
        stream = web.WebSocketResponse()
        await stream.prepare(request)
        if not self.tails:
            await stream.send_str(LOG)
            return stream
        await stream.send_str(self.tails.pop(0))
        await asyncio.sleep(0.05)  # what was sent should leave before the connection does
        _cut(request)

    def _answer(self, told: Any) -> web.Response:
        if self.status != 200:
            return web.Response(status=self.status, text="told by the test")
        return web.json_response(told)

    def application(self) -> web.Application:
        """Return what is served."""
        application = web.Application()
        application.add_routes(
            [
                web.get("/api/version", self.version),
                web.get("/api/jobs/", self.jobs),
                web.get("/api/jobs/{job}", self.job),
                web.get("/api/jobs/{job}/logs", self.log),
                web.get("/api/jobs/{job}/logs/tail", self.tail),
            ]
        )
        return application


def _cut(request: web.Request) -> NoReturn:
    assert request.transport is not None
    request.transport.abort()
    raise ConnectionResetError


@contextmanager
def dashboard() -> Iterator[Dashboard]:
    """Have one that is up."""
    made, loop = Dashboard(), asyncio.new_event_loop()
    runner = web.AppRunner(made.application())

    async def start() -> None:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()

    def wait_for(work: Callable[[], Any]) -> None:
        asyncio.run_coroutine_threadsafe(work(), loop).result(20)

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        wait_for(start)
        made.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield made
    finally:
        wait_for(runner.cleanup)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(20)
        loop.close()
