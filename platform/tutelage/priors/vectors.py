"""Vectors of what is known about structures: what a specialist may be conditioned on.

It decides which vectors there are, in which order, and how they are kept with everything
they came from: one parquet with a row a structure and topic. It does not know how a text
becomes a vector (`towers` does) or what a specialist makes of it.

Encoders that read the text: `minilm`, a sentence encoder (all-MiniLM-L6-v2) mounted as an
open_clip text tower, which needs no download but was trained on text alone: its vectors
tell which sentences are alike and know nothing of images; `clip` and `biomedclip`, towers
that were trained beside an image tower. Ablations that read nothing: `random`,
`orthogonal`, `one_hot`. What a specialist gains with them it does not owe to the text.
"""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tutelage.errors import SettingsError, WorkspaceError
from tutelage.records import Prior
from tutelage.settings import Settings, fingerprint
from tutelage.storage import Place

BACKGROUND = "background"
"""Name of the first row: everything that is none of the structures."""

TOPICS = ("shape", "position")
"""What a text is about, in the order of vectors."""

READS_NOTHING = ("random", "orthogonal", "one_hot")
"""Encoders that give every structure and topic a vector of its own, whatever is written about it."""

_TOWERS = {
    "clip": "ViT-B-32",
    "biomedclip": "hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
}
_WHOLE = ("hf-hub:", "local-dir:")
"""How open_clip names a tower that comes with its weights."""

_BACKGROUND_TEXTS = {
    "shape": "no shape of its own: everything that is none of {}",
    "position": "around and between {}",
}
_COLUMNS = ("structure", "topic", "text", "source", "vector")


class VectorSettings(Settings):
    """How texts become vectors."""

    encoder: Literal["minilm", "clip", "biomedclip", "random", "orthogonal", "one_hot"] = "minilm"
    """Who reads the texts. `minilm` measures how alike texts are and is not aligned with images; `clip`
    and `biomedclip` are, and need a `checkpoint`; the last three read nothing, to tell what text is worth."""

    model: str | None = None
    """Name by which open_clip knows the tower, or hf-hub:OWNER/NAME or local-dir:FOLDER; without one
    ViT-B-32 for `clip` and Microsoft's BiomedCLIP for `biomedclip`."""

    checkpoint: str | None = None
    """Weights of `model`: a file, or the tag of weights that open_clip may download. With hf-hub: and
    local-dir: the weights are part of the model."""

    width: int = Field(default=384, ge=1)
    """Length of `random` and `orthogonal` vectors; a tower's own width cannot be chosen."""

    seed: int = Field(default=0, ge=0)
    """Of `random` and `orthogonal`."""

    @property
    def tower(self) -> str | None:
        """Name by which open_clip knows the tower; None if it is none of open_clip's own."""
        return (self.model or _TOWERS[self.encoder]) if self.encoder in _TOWERS else None

    def problems(self) -> Iterator[tuple[str, str]]:
        """Complain about a tower without weights, and about weights that nobody loads."""
        if self.tower is None:
            for name in ("model", "checkpoint"):
                if getattr(self, name):
                    yield name, f"{self.encoder} has none to choose; remove it, or take encoder clip"
        elif self.tower.startswith(_WHOLE) and self.checkpoint:
            yield "checkpoint", f"{self.tower} comes with its own weights; remove it"
        elif not self.tower.startswith(_WHOLE) and not self.checkpoint:
            yield (
                "checkpoint",
                f"missing for {self.tower}, whose vectors mean nothing without weights; give a file or a "
                "tag that open_clip may download, or take encoder minilm",
            )


@dataclass(frozen=True)
class Vectors:
    """Vectors of all classes, and what they came from."""

    structures: tuple[str, ...]
    """Names of classes, the background first: label values are indices."""

    topics: tuple[str, ...]
    array_KTF: NDArray[np.float32]
    """Unit length along F."""

    texts_KT: tuple[tuple[str, ...], ...]
    """What was read."""

    sources_K: tuple[Mapping[str, object], ...]
    """Who said it: model, weights, prompt, sampling and date, as the shelf has them."""

    encoder: str
    """Who read it, in words."""

    digest: str
    """Of the encoder's weights; of its settings, if it has none."""

    settings: Mapping[str, object] = field(default_factory=dict)
    """What the encoder was told."""

    @property
    def fingerprint(self) -> str:
        """Changes with what was read, who read it and every vector: it enters a round's lineage."""
        sources = [dict(source) for source in self.sources_K]
        numbers = self.array_KTF.astype("<f4").tobytes().hex()
        said = [self.texts_KT, sources, self.encoder, self.digest, dict(self.settings)]
        return fingerprint(self.structures, self.topics, said, numbers)


def make(
    priors: Mapping[str, Prior],
    structures: Sequence[str],
    settings: VectorSettings,
    sources: Mapping[str, Mapping[str, object]] | None = None,
) -> Vectors:
    """Return the vectors of a background and these structures.

    Raises:
        SettingsError: the encoder reads texts and a structure has none.
    """
    names = (BACKGROUND, *structures)
    texts_KT = texts_of(priors, structures, needed=settings.encoder not in READS_NOTHING)
    if settings.encoder in READS_NOTHING:
        array_KTF = _unread(len(names), settings)
        encoder, digest = f"{settings.encoder}, which reads nothing", settings.fingerprint()
    else:
        from tutelage.priors.towers import encode

        read = encode([text for texts in texts_KT for text in texts], settings)
        array_KTF = read.vectors_NF.reshape(len(names), len(TOPICS), -1)
        encoder, digest = read.encoder, read.digest
    return Vectors(
        names,
        TOPICS,
        array_KTF,
        texts_KT,
        _sources(priors, structures, sources or {}),
        encoder,
        digest,
        settings.model_dump(mode="json"),
    )


def still_hold(
    vectors: Vectors,
    priors: Mapping[str, Prior],
    structures: Sequence[str],
    settings: VectorSettings,
    sources: Mapping[str, Mapping[str, object]] | None = None,
) -> bool:
    """Tell whether `make` would be asked for what these vectors were made of."""
    return (
        vectors.structures == (BACKGROUND, *structures)
        and vectors.topics == TOPICS
        and vectors.texts_KT == texts_of(priors, structures, needed=False)
        and vectors.sources_K == _sources(priors, structures, sources or {})
        and vectors.settings == settings.model_dump(mode="json")
    )


def write(place: Place, vectors: Vectors) -> None:
    """Write vectors and all that they came from as one parquet, whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pairs = [(k, t) for k in range(len(vectors.structures)) for t in range(len(vectors.topics))]
    columns = {
        "structure": [vectors.structures[k] for k, _ in pairs],
        "topic": [vectors.topics[t] for _, t in pairs],
        "text": [vectors.texts_KT[k][t] for k, t in pairs],
        "source": [json.dumps(dict(vectors.sources_K[k]), sort_keys=True) for k, _ in pairs],
        "vector": pa.array([vectors.array_KTF[k, t] for k, t in pairs], pa.list_(pa.float32())),
    }
    told = {"encoder": vectors.encoder, "digest": vectors.digest, "settings": dict(vectors.settings)}
    table = pa.table(columns).replace_schema_metadata(
        {"tutelage": json.dumps(told | {"fingerprint": vectors.fingerprint}, sort_keys=True)}
    )
    sink = io.BytesIO()
    pq.write_table(table, sink)
    place.write_bytes(sink.getvalue())


def read(place: Place) -> Vectors:
    """Return what `write` wrote.

    Raises:
        WorkspaceError: the file is not there, is something else, or has been changed.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    advice = "delete it and run again, vectors are then made anew from the shelf of priors"
    try:
        table = pq.read_table(pa.BufferReader(place.read_bytes()))
        told = json.loads((table.schema.metadata or {})[b"tutelage"])
        vectors = _vectors(table.select(list(_COLUMNS)).to_pylist(), told)
    except FileNotFoundError:
        raise WorkspaceError(f"{place} does not exist; `tutelage priors` makes it") from None
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise WorkspaceError(f"{place} does not hold vectors of structures ({error}); {advice}") from error
    if vectors.fingerprint != told["fingerprint"]:
        raise WorkspaceError(
            f"{place} has fingerprint {vectors.fingerprint}, expected {told['fingerprint']} as it was "
            f"written: something changed it; {advice}"
        )
    return vectors


def _vectors(rows: Sequence[Mapping[str, object]], told: Mapping[str, object]) -> Vectors:
    structures = tuple(dict.fromkeys(str(row["structure"]) for row in rows))
    topics = tuple(dict.fromkeys(str(row["topic"]) for row in rows))
    by_pair = {(str(row["structure"]), str(row["topic"])): row for row in rows}
    array_KTF = np.asarray([[by_pair[s, t]["vector"] for t in topics] for s in structures], np.float32)
    settings = told["settings"]
    return Vectors(
        structures,
        topics,
        array_KTF,
        tuple(tuple(str(by_pair[s, t]["text"]) for t in topics) for s in structures),
        tuple(json.loads(str(by_pair[s, topics[0]]["source"])) for s in structures),
        str(told["encoder"]),
        str(told["digest"]),
        settings if isinstance(settings, dict) else {},
    )


# --- what is read -------------------------------------------------------------------------


def texts_of(
    priors: Mapping[str, Prior], structures: Sequence[str], needed: bool
) -> tuple[tuple[str, ...], ...]:
    """Return what is known of each class by topic, each sentence with the name it is about.

    Raises:
        SettingsError: a sentence is needed and not there.
    """
    said = {name: dict(priors[name].text) if name in priors else {} for name in structures}
    missing = [f"{name}.text.{topic}" for name in structures for topic in TOPICS if not said[name].get(topic)]
    if missing and needed:
        raise SettingsError(
            f"the shelf of priors lacks {', '.join(missing)}, expected a sentence about every structure to "
            "make vectors of; write it there or ask a model (`tutelage priors --model`), or set "
            "priors.vectors.encoder to orthogonal, which reads nothing"
        )
    everything = ", ".join(_spoken(name) for name in structures)
    background = tuple(_BACKGROUND_TEXTS[topic].format(everything) for topic in TOPICS)
    rows = (tuple(_sentence(name, said[name].get(topic, "")) for topic in TOPICS) for name in structures)
    return (background, *rows)


def _sources(
    priors: Mapping[str, Prior], structures: Sequence[str], sources: Mapping[str, Mapping[str, object]]
) -> tuple[Mapping[str, object], ...]:
    said = {name: {"source": prior.source, **sources.get(name, {})} for name, prior in priors.items()}
    return ({"source": "made of the names of all structures"}, *(said.get(name, {}) for name in structures))


def _sentence(structure: str, text: str) -> str:
    return f"{_spoken(structure)}: {text}" if text else _spoken(structure)


def _spoken(structure: str) -> str:
    return structure.replace("_", " ")


# --- what reads nothing -------------------------------------------------------------------


def _unread(classes: int, settings: VectorSettings) -> NDArray[np.float32]:
    """Unit vectors that know nothing but which class and topic is which."""
    many = classes * len(TOPICS)
    if settings.encoder == "one_hot":
        vectors_NF = np.eye(many)
    else:
        width = settings.width if settings.encoder == "random" else max(settings.width, many)
        vectors_NF = np.random.default_rng(settings.seed).standard_normal((many, width))
        if settings.encoder == "orthogonal":
            vectors_NF = np.linalg.qr(vectors_NF.T)[0].T
        vectors_NF /= np.linalg.norm(vectors_NF, axis=1, keepdims=True)
    return vectors_NF.reshape(classes, len(TOPICS), -1).astype(np.float32)
