"""The page at `/`: what is served of it, what is never, and what is said where it was not built."""

from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from serve.page import UNBUILT, mount


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """Have a folder as the build leaves one, and secrets around it."""
    folder = tmp_path / "dist"
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_text("<title>the page</title>")
    (folder / "licences.txt").write_text("MIT")
    (folder / "assets" / "main-AB12.js").write_text("1")
    (folder / "assets" / "page-AB12.css").write_text("a{}")
    (folder / "assets" / "notes.md").write_text("secret")
    (folder / "assets" / ".hidden.js").write_text("secret")
    (tmp_path / "token.js").write_text("secret")
    (folder / "other.js").write_text("secret")
    (folder / "assets" / "linked.js").symlink_to(tmp_path / "token.js")
    return folder


def asked(folder: Path) -> TestClient:
    app = FastAPI()
    mount(app, folder)
    return TestClient(app)


def test_the_page_is_asked_for_anew_and_its_scripts_are_kept(built: Path) -> None:
    client = asked(built)
    page = client.get("/")
    assert (page.status_code, page.text) == (200, "<title>the page</title>")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["cache-control"] == "no-cache"
    script = client.get("/assets/main-AB12.js")
    assert script.headers["content-type"] == "text/javascript; charset=utf-8"
    assert "immutable" in script.headers["cache-control"]
    assert client.get("/assets/page-AB12.css").headers["content-type"] == "text/css; charset=utf-8"
    assert client.get("/licences.txt").text == "MIT"
    assert client.head("/").status_code == 200


def test_browsers_are_told_to_load_nothing_from_elsewhere(built: Path) -> None:
    for address in ("/", "/assets/main-AB12.js", "/assets/gone.js"):
        headers = asked(built).get(address).headers
        policy = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["connect-src"] == policy["script-src"] == policy["style-src"] == "'self'"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize(
    "address",
    [
        f"/assets/{'a' * 300}.js",
        "/assets/../other.js",
        "/assets/%2e%2e/other.js",
        "/assets/..%2fother.js",
        "/assets/..%2f..%2ftoken.js",
        "/assets/%2ftmp%2ftoken.js",
        "/assets/..%5cother.js",
        "/assets/.hidden.js",
        "/assets/linked.js",
        "/assets/notes.md",
        "/assets/main-AB12.js%00",
        "/assets/main-AB12.js%0a",
        "/assets/",
        "/assets",
        "/other.js",
        "/index.html",
    ],
)
def test_nothing_but_the_built_page_can_be_asked_for(built: Path, address: str) -> None:
    answer = asked(built).get(address)
    assert answer.status_code == 404
    assert "secret" not in answer.text


def test_without_a_built_page_it_is_said_how_to_build_one_and_it_is_seen_at_once(built: Path) -> None:
    aside = built.rename(built.with_name("aside"))
    client = asked(built)
    told = client.get("/")
    assert (told.status_code, told.text) == (200, UNBUILT)
    assert "make web" in told.text
    assert "v1/segment" in told.text
    assert client.get("/assets/main-AB12.js").status_code == client.get("/licences.txt").status_code == 404
    aside.rename(built)
    assert client.get("/").text == "<title>the page</title>"


def test_the_page_is_no_part_of_the_interface(built: Path) -> None:
    assert asked(built).get("/openapi.json").json()["paths"] == {}
