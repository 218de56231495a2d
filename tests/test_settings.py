"""Settings files: what is read, what is refused, and whether the message helps."""

from pathlib import Path

import pytest
from pydantic import Field

from tutelage.errors import SettingsError
from tutelage.settings import Settings, fingerprint, load


class Train(Settings):
    """Inner settings."""

    steps: int = Field(default=100, ge=1)
    """How long."""

    spacing: tuple[float, float, float] = (3.0, 1.0, 1.0)
    """Millimeters."""


class Run(Settings):
    """Outer settings."""

    name: str
    """What it is called."""

    train: Train = Train()
    """How it learns."""

    backup: Train | None = None
    """Another one."""

    def problems(self) -> "list[tuple[str, str]]":  # type: ignore[override]
        return [("name", "is a bad omen; choose another")] if self.name == "macbeth" else []


def written(folder: Path, text: str, name: str = "run.yaml") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_a_file_is_read_with_defaults_for_what_it_leaves_out(tmp_path: Path) -> None:
    settings = load(written(tmp_path, "name: a\ntrain: {steps: 7}"), Run)
    assert (settings.name, settings.train.steps, settings.train.spacing) == ("a", 7, (3.0, 1.0, 1.0))


def test_what_is_written_out_reads_back_the_same(tmp_path: Path) -> None:
    settings = load(written(tmp_path, "name: a\nbackup: {spacing: [9, 3, 3]}"), Run)
    again = load(written(tmp_path, settings.to_yaml(), "again.yaml"), Run)
    assert again == settings
    assert again.fingerprint() == settings.fingerprint()


def test_a_file_extends_another_key_by_key(tmp_path: Path) -> None:
    written(tmp_path, "name: base\ntrain: {steps: 7, spacing: [9, 3, 3]}", "base.yaml")
    settings = load(written(tmp_path, "extends: base.yaml\ntrain: {steps: 8}"), Run)
    assert (settings.name, settings.train) == ("base", Train(steps=8, spacing=(9, 3, 3)))


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "name: a\ntrain: {steps: 7}")
    settings = load(path, Run, ["train.steps=9", "backup.spacing=[1, 2, 3]", "name=b=c"])
    assert (settings.train.steps, settings.name) == (9, "b=c")
    assert settings.backup is not None
    assert settings.backup.spacing == (1, 2, 3)


def test_yaml_anchors_may_repeat_keys(tmp_path: Path) -> None:
    text = "name: a\ntrain: &same {steps: 7, spacing: [9, 3, 3]}\nbackup: {<<: *same, steps: 8}"
    settings = load(written(tmp_path, text), Run)
    assert settings.backup == Train(steps=8, spacing=(9, 3, 3))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: a\ntrian: {}", "trian: unknown key; did you mean train?"),
        ("name: a\ntrain: {stepps: 3}", "train.stepps: unknown key; did you mean steps?"),
        ("name: a\nbackup: {zzz: 3}", "backup.zzz: unknown key; known here: spacing, steps"),
        ("train: {}", "name: missing; add it"),
        ("name: a\ntrain: {steps: 0}", "train.steps: found 0, input should be greater than or equal to 1"),
        ("name: a\ntrain: {steps: .nan}", "train.steps: found nan"),
        ("name: a\ntrain: {spacing: [1, .inf, 1]}", "train.spacing.1: found inf"),
        ("name: a\nname: b", "key 'name' is written twice, again on line 2; keep one"),
        ("name: a\n? [x]\n: b", "is not a word; write name: value"),
        ("name: [a", "is not YAML"),
        ("- a\n- b", "holds ['a', 'b'], expected keys and values"),
        ("", "holds None, expected keys and values"),
        ("name: !!python/object/apply:os.getcwd []", "is not YAML"),
        ("name: macbeth", "name: is a bad omen; choose another"),
        ("name: a\n1: b", "1: "),
    ],
    ids=[
        "misspelled", "misspelled below", "unknown behind an optional", "missing", "out of range",
        "not a number", "infinite", "written twice", "list as a key", "broken", "a list", "empty", "code",
        "outside problem",
        "number as a key",
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_and_says_why(tmp_path: Path, text: str, told: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(SettingsError) as caught:
        load(path, Run)
    assert told in str(caught.value)
    assert str(path) in str(caught.value)


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load(written(tmp_path, "nmae: a\ntrain: {steps: 0, spacing: 3}"), Run)
    assert [where in str(caught.value) for where in ("nmae", "name:", "train.steps", "train.spacing")] == [
        True
    ] * 4


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("steps", "is not key=value"),
        ("=3", "is not key=value"),
        ("train..steps=3", "is not key=value"),
        ("name.first=a", "name is 'a' and has no keys"),
        ("train.steps=[", "'[' is not a YAML value; quote it"),
    ],
)
def test_a_wrong_override_is_refused(tmp_path: Path, override: str, told: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(written(tmp_path, "name: a"), Run, [override])
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("extends: nowhere.yaml", "nowhere.yaml does not exist"),
        ("extends: 3", "extends is 3, expected the name of a file beside it"),
        ("extends: middle.yaml", "only one level is allowed"),
    ],
)
def test_a_wrong_base_is_refused(tmp_path: Path, text: str, told: str) -> None:
    written(tmp_path, "extends: other.yaml", "middle.yaml")
    with pytest.raises(SettingsError, match=told):
        load(written(tmp_path, text), Run)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(SettingsError, match=r"run\.yaml"):
        load(tmp_path / "run.yaml", Run)
    with pytest.raises(SettingsError, match="cannot be read"):
        load(tmp_path, Run)


def test_a_fingerprint_changes_with_any_value_and_only_then() -> None:
    one = Run(name="a")
    assert one.fingerprint() == Run(name="a", train=Train()).fingerprint()
    assert one.fingerprint() != Run(name="a", train=Train(steps=101)).fingerprint()
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert len(fingerprint()) == 12


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        setattr(Run(name="a"), "name", "b")  # noqa: B010 - mypy knows that it cannot be done
