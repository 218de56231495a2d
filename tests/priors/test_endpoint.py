"""A server that speaks OpenAI's protocol, and everything it can do wrong."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tutelage.errors import PriorsError
from tutelage.priors import cases
from tutelage.priors.base import Finish, Question, Reply
from tutelage.priors.endpoint import Endpoint
from tutelage.priors.recorded import Replies
from tutelage.priors.settings import AskingSettings, EndpointSettings
from tutelage.records import Note
from tutelage.storage import Place

QUICK = EndpointSettings(concurrency=2, timeout_s=5, tries=3, wait_s=0.01, longest_wait_s=2)
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


class Server(ThreadingHTTPServer):
    """Answers chat completions with what was asked, or with the next fault on its list."""

    daemon_threads = True

    def __init__(self, models: tuple[str, ...] = ("small",)) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models = models
        self.faults: list[str] = []
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that does not wait is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._send(200, {"data": [{"id": name} for name in self.server.models]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append(body)
            self.server.keys.append(self.headers.get("Authorization"))
            fault = self.server.faults.pop(0) if self.server.faults else ""
            self.server.at_once += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
        time.sleep(0.02)
        with self.server.lock:
            self.server.at_once -= 1
        getattr(self, f"_{fault}", self._answer)(body)

    def _answer(self, body: dict[str, Any], text: str | None = None, finish: str = "stop") -> None:
        said = json.dumps({"a": int(body["messages"][1]["content"])}) if text is None else text
        choice = {"message": {"role": "assistant", "content": said}, "finish_reason": finish}
        self._send(200, {"choices": [choice], "usage": {"completion_tokens": 7}})

    def _busy(self, body: dict[str, Any]) -> None:
        self._send(429, {"error": {"message": "slow down"}}, {"Retry-After": "0.2"})

    def _busy_for_long(self, body: dict[str, Any]) -> None:
        self._send(429, {"error": {"message": "quota"}}, {"Retry-After": "3600"})

    def _broken(self, body: dict[str, Any]) -> None:
        self._send(503, {"error": "overloaded"})

    def _slow(self, body: dict[str, Any]) -> None:
        time.sleep(1.5)
        self._answer(body)

    def _prose(self, body: dict[str, Any]) -> None:
        self._answer(body, "The liver is large.")

    def _empty(self, body: dict[str, Any]) -> None:
        self._answer(body, "")

    def _cut(self, body: dict[str, Any]) -> None:
        self._answer(body, '{"a": 1', "length")

    def _page(self, body: dict[str, Any]) -> None:
        self._send(200, "<html>login</html>")

    def _nothing(self, body: dict[str, Any]) -> None:
        self._send(200, {"choices": []})

    def _unwilling(self, body: dict[str, Any]) -> None:
        self._send(400, {"error": {"message": "schema is not supported: pattern"}})

    def _echo(self, body: dict[str, Any]) -> None:
        self._send(400, {"error": {"message": f"cannot read: {body['messages'][1]['content']}"}})

    def _echo_key(self, body: dict[str, Any]) -> None:
        self._send(401, {"error": {"message": f"bad key: {self.headers.get('Authorization')}"}})

    def _no_such_model(self, body: dict[str, Any]) -> None:
        self._send(404, {"error": {"message": "The model `small` does not exist."}})

    def _no_right(self, body: dict[str, Any]) -> None:
        self._send(401, {"error": {"message": "bad key"}})

    def _hang_up(self, body: dict[str, Any]) -> None:
        self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.shutdown()
    made.server_close()


def _questions(count: int, samples: int = 1) -> list[Question]:
    return [
        Question(str(n), "be brief", str(n), SCHEMA, samples, max_tokens=50, seed=3) for n in range(count)
    ]


def _ask(server: Server, count: int = 1, settings: EndpointSettings = QUICK) -> list[Reply]:
    replies = Endpoint(server.url, settings=settings).answer(_questions(count))
    return sorted(replies, key=lambda reply: int(reply.key))


def test_every_question_gets_its_own_answer(server: Server) -> None:
    replies = _ask(server, 20)
    assert [json.loads(reply.text) for reply in replies] == [{"a": n} for n in range(20)]
    assert {reply.tokens for reply in replies} == {7}


def test_a_question_carries_prompts_schema_seed_and_length(server: Server) -> None:
    _ask(server)
    (body,) = server.asked
    assert [message["content"] for message in body["messages"]] == ["be brief", "0"]
    assert body["response_format"]["json_schema"]["schema"] == SCHEMA
    assert (body["model"], body["max_tokens"], body["seed"]) == ("small", 50, 3)


def test_samples_differ_by_their_seed(server: Server) -> None:
    replies = list(Endpoint(server.url, settings=QUICK).answer(_questions(1, samples=3)))
    assert sorted(reply.sample for reply in replies) == [0, 1, 2]
    assert sorted(body["seed"] for body in server.asked) == [3, 4, 5]


def test_a_server_that_cannot_take_seeds_gets_none(server: Server) -> None:
    _ask(server, 1, QUICK.model_copy(update={"seeds": False}))
    assert "seed" not in server.asked[0]


def test_no_more_questions_are_under_way_than_allowed(server: Server) -> None:
    _ask(server, 12)
    assert server.most_at_once <= QUICK.concurrency


def test_questions_are_taken_only_as_there_is_room(server: Server) -> None:
    taken = []

    def asked() -> Iterator[Question]:
        for question in _questions(50):
            taken.append(question)
            yield question

    replies = Endpoint(server.url, settings=QUICK).answer(asked())
    next(replies)
    replies.close()  # type: ignore[attr-defined]
    assert len(taken) <= 2 * QUICK.concurrency


@pytest.mark.parametrize("fault", ["busy", "broken", "hang_up"])
def test_a_passing_trouble_is_sat_out(server: Server, fault: str) -> None:
    server.faults = [fault]
    (reply,) = _ask(server)
    assert json.loads(reply.text) == {"a": 0}
    assert len(server.asked) == 2 if fault != "hang_up" else len(server.asked) >= 2


def test_a_server_that_says_when_to_come_back_is_obeyed(server: Server) -> None:
    server.faults = ["busy"]
    started = time.monotonic()
    _ask(server)
    assert time.monotonic() - started >= 0.2


def test_a_server_that_wants_an_hour_is_not_waited_for(server: Server) -> None:
    server.faults = ["busy_for_long"]
    (reply,) = _ask(server)
    assert reply.finish == Finish.ERROR
    assert "429" in reply.error
    assert reply.detail == "quota"
    assert len(server.asked) == 1


def test_tries_are_bounded_and_the_others_go_on(server: Server) -> None:
    server.faults = ["broken"] * QUICK.tries
    one_by_one = QUICK.model_copy(update={"concurrency": 1})
    first, second = _ask(server, 2, one_by_one)
    assert first.finish == Finish.ERROR
    assert "503" in first.error
    assert first.detail == "overloaded"
    assert json.loads(second.text) == {"a": 1}
    assert len(server.asked) == QUICK.tries + 1


def test_a_slow_server_is_told_apart_from_none(server: Server) -> None:
    server.faults = ["slow"]
    (reply,) = _ask(server, 1, QUICK.model_copy(update={"timeout_s": 0.5, "tries": 1}))
    assert reply.finish == Finish.ERROR
    assert "did not answer within 0.5 s" in reply.error


@pytest.mark.parametrize(
    ("fault", "finish", "text"),
    [
        ("prose", Finish.STOP, "The liver is large."),
        ("empty", Finish.STOP, ""),
        ("cut", Finish.LENGTH, '{"a": 1'),
    ],
)
def test_what_a_model_says_wrong_comes_back_as_it_is(
    server: Server, fault: str, finish: Finish, text: str
) -> None:
    server.faults = [fault]
    (reply,) = _ask(server)
    assert (reply.finish, reply.text) == (finish, text)


@pytest.mark.parametrize(
    ("fault", "told"),
    [("page", "answers no JSON"), ("nothing", "no choices"), ("unwilling", "400 Bad Request")],
)
def test_an_answer_without_an_answer_is_an_error_and_not_repeated(
    server: Server, fault: str, told: str
) -> None:
    server.faults = [fault]
    (reply,) = _ask(server)
    assert reply.finish == Finish.ERROR
    assert told in reply.error
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("fault", "told"), [("no_such_model", "does not exist"), ("no_right", "OPENAI_API_KEY")]
)
def test_what_no_question_would_survive_stops_it_all(server: Server, fault: str, told: str) -> None:
    server.faults = [fault] * 10
    with pytest.raises(PriorsError, match=told):
        _ask(server, 10, QUICK.model_copy(update={"concurrency": 1}))
    assert len(server.asked) == 1


def test_no_server_is_told_with_its_address_before_anything_is_asked() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(PriorsError, match=f"no server answers at {address}/v1"):
        Endpoint(address, settings=QUICK)


def test_a_server_that_dies_on_the_way_stops_the_rest_after_a_few_questions(server: Server) -> None:
    endpoint = Endpoint(server.url, settings=QUICK.model_copy(update={"concurrency": 1, "tries": 1}))
    replies = endpoint.answer(_questions(50))
    assert next(replies).finish == Finish.STOP
    server.shutdown()
    server.server_close()
    with pytest.raises(PriorsError, match="run again when the server is back"):
        list(replies)


def test_a_model_the_server_has_not_is_told_with_those_it_has(server: Server) -> None:
    with pytest.raises(PriorsError, match="no model 'large'; it has small"):
        Endpoint(server.url, "large", QUICK)


def test_of_several_models_one_must_be_named(server: Server) -> None:
    server.models = ("small", "large")
    with pytest.raises(PriorsError, match="several models"):
        Endpoint(server.url, settings=QUICK)
    assert Endpoint(server.url, "large", QUICK).name == "large"


def test_the_key_travels_and_is_in_no_message(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret-123")
    settings = QUICK.model_copy(update={"api_key_env": "MY_KEY"})
    _ask(server, 1, settings)
    assert server.keys == ["Bearer secret-123"]
    server.faults = ["echo_key"]
    with pytest.raises(PriorsError) as caught:
        _ask(server, 1, settings)
    assert "secret-123" not in str(caught.value)


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(PriorsError, match="expected an address"):
        Endpoint("localhost:8000", settings=QUICK)


@pytest.mark.parametrize(
    "url",
    [
        "https://me:secret-123@server/v1",
        "https://secret-123@server",
        "me:secret-123@server/v1",
        "https://server/v1?api_key=secret-123",
    ],
)
def test_an_address_with_a_key_in_it_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(PriorsError, match="OPENAI_API_KEY") as caught:
        Endpoint(url, settings=QUICK)
    assert "secret-123" not in str(caught.value)


def test_what_a_server_says_about_an_error_is_in_no_row_about_a_case(server: Server, tmp_path: Path) -> None:
    server.faults = ["echo"]
    place = Place.of(tmp_path / "cases.parquet")
    note = Note("a", {"report": "spleen removed in Springfield"})
    endpoint = Endpoint(server.url, settings=QUICK)
    replies = Replies(Place.of(tmp_path / "replies"))
    told = cases.ask(endpoint, [note], ("spleen",), AskingSettings(), replies, place, "2026-11-21")
    assert told.failed == 1
    (row,) = pq.read_table(tmp_path / "cases.parquet").to_pylist()
    assert "400 Bad Request" in row["reason"]
    assert "Springfield" not in json.dumps(row)


def test_replies_that_are_there_come_before_the_error_of_another(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def at_once(self: Endpoint, client: object, sample: int, question: Question) -> Reply:
        if question.key == "0":
            raise PriorsError("no right to ask")
        return Reply(question.key, sample, "{}")

    monkeypatch.setattr(Endpoint, "_reply", at_once)
    endpoint = Endpoint(server.url, settings=QUICK.model_copy(update={"concurrency": 16}))
    replies = endpoint.answer(_questions(16))
    came = [next(replies).key for _ in range(15)]
    with pytest.raises(PriorsError, match="no right"):
        next(replies)
    assert sorted(came, key=int) == [str(n) for n in range(1, 16)]
