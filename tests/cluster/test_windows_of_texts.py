"""Questions enter Ray in windows; a dataset that echoes stands where the engine would be."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tutelage.cluster import texts
from tutelage.cluster.settings import ClusterSettings
from tutelage.priors.base import Finish, Question
from tutelage.priors.settings import EngineSettings

pytestmark = pytest.mark.ray


def _echo(self: texts.RayTextModel, shared: texts._Shared) -> Callable[[Any], Any]:
    def said(row: dict[str, Any]) -> dict[str, Any]:
        more = {"text": row["user"], "tokens": 1, "error": "", "began_s": 0.0, "ended_s": 0.0}
        return {name: row[name] for name in ("key", "sample", "most")} | more

    return lambda dataset: dataset.map(said)


def test_no_more_questions_are_taken_than_a_window_holds(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "checked", lambda folder: None)
    monkeypatch.setattr(texts, "weights_digest", lambda folder: "none")
    monkeypatch.setattr(texts, "_ROWS", 3)
    monkeypatch.setattr(texts, "_BLOCKS", 2)
    monkeypatch.setattr(texts.RayTextModel, "_processor", _echo)
    taken = 0

    def questions() -> Iterator[Question]:
        nonlocal taken
        for n in range(15):
            taken += 1
            yield Question(str(n), "be brief", f"note {n}", {})

    model = texts.RayTextModel(tmp_path, EngineSettings(), ClusterSettings())
    came = {}
    try:
        for reply in model.answer(questions()):
            came[reply.key] = reply.text
            assert taken <= (len(came) + 5) // 6 * 6
    finally:
        model.close()
    assert came == {str(n): f"note {n}" for n in range(15)}


def test_an_engine_that_writes_nothing_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "checked", lambda folder: None)
    monkeypatch.setattr(texts, "weights_digest", lambda folder: "none")
    row = {"key": "liver", "sample": 0, "most": 9, "text": "", "tokens": 0, "error": ""}
    monkeypatch.setattr(texts.RayTextModel, "rows", lambda self, questions: iter([row]))
    model = texts.RayTextModel(tmp_path, EngineSettings(), ClusterSettings())
    (reply,) = model.answer([])
    assert reply.finish is Finish.ERROR
    assert "lower priors.asking.letters" in reply.error
