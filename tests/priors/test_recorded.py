import json
from pathlib import Path

import pytest

from tutelage.errors import PriorsError, SettingsError
from tutelage.priors import shelf
from tutelage.priors.answers import read
from tutelage.priors.base import Finish, Question, Reply
from tutelage.priors.questions import Region, question, topics
from tutelage.priors.recorded import Recorded, Replies
from tutelage.priors.settings import AskingSettings
from tutelage.storage import Place

TORSO = Path(__file__).parents[2] / "configs" / "priors" / "torso.yaml"
ASKED = Question("liver|CT|axial|0", "be brief", "liver?", {"properties": {}})


def test_a_shelf_answers_every_question_about_its_structures() -> None:
    model = Recorded(TORSO)
    region = Region(tuple(shelf.read(TORSO)), ("CT",))
    settings = AskingSettings()
    asked = [question(topic, region, settings) for topic in topics(region, region.structures, settings)]
    for reply in model.answer(asked):
        structure = reply.key.partition("|")[0]
        found = read(reply, structure, region.others(structure))
        assert found.wrong == ()
        assert found.said is not None
        assert found.said.largest_ml == shelf.read(TORSO)[structure].volume_ml[1]


def test_a_shelf_knows_no_other_structures() -> None:
    (reply,) = Recorded(TORSO).answer([Question("heart|CT|axial", "", "", {"properties": {}})])
    assert reply.finish == Finish.ERROR
    assert "no heart" in reply.error


def test_a_shelf_without_texts_does_not_make_them_up(tmp_path: Path) -> None:
    (file := tmp_path / "shelf.yaml").write_text("source: me\nstructures:\n  liver: {volume_ml: [1, 2]}\n")
    (reply,) = Recorded(file).answer([ASKED])
    assert "lacks text of liver: shape, position, appearance" in reply.error


def test_a_recording_that_is_no_shelf_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--recorded"):
        Recorded(tmp_path / "none.yaml")


def test_replies_are_found_again_by_what_was_asked_of_whom(tmp_path: Path) -> None:
    replies = Replies(Place.of(tmp_path))
    replies.keep("m", ASKED, Reply(ASKED.key, 0, "{}", 3))
    replies.flush()
    found = Replies(Place.of(tmp_path))
    assert found.of("m", ASKED) == Reply(ASKED.key, 0, "{}", 3)
    assert found.of("another", ASKED) is None
    assert found.of("m", Question(ASKED.key, "be brief", "spleen?", {})) is None


def test_the_same_question_under_another_key_is_answered_under_that_key(tmp_path: Path) -> None:
    replies = Replies(Place.of(tmp_path))
    replies.keep("m", ASKED, Reply(ASKED.key, 0, "{}"))
    other = Question("other", ASKED.system, ASKED.user, ASKED.schema)
    found = replies.of("m", other)
    assert found is not None
    assert found.key == "other"


def test_errors_are_not_kept(tmp_path: Path) -> None:
    replies = Replies(Place.of(tmp_path))
    replies.keep("m", ASKED, Reply(ASKED.key, 0, finish=Finish.ERROR, error="gone"))
    replies.flush()
    assert len(Replies(Place.of(tmp_path))) == 0


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "1.jsonl").write_text('{"asked": "a"\n')
    with pytest.raises(PriorsError, match=r"line 1 of .*1\.jsonl"):
        Replies(Place.of(tmp_path))


def test_what_is_kept_is_plain_lines_of_json(tmp_path: Path) -> None:
    replies = Replies(Place.of(tmp_path))
    replies.keep("m", ASKED, Reply(ASKED.key, 0, "{}", 3))
    replies.flush()
    (file,) = tmp_path.iterdir()
    (line,) = file.read_text().splitlines()
    assert json.loads(line)["finish"] == "stop"
