"""What of a case's metadata may leave its archive: few fields, and not what they say of the person.

It decides by an allow-list, so that a field nobody thought of stays. Values of other fields
that may tell who somebody is (names, numbers, dates, places) are blanked out of the allowed
ones, and so is what looks like a date, a long number, an address of mail or a titled name.
A free text can still name somebody whom no header names: what leaves may still be sensitive.
"""

import re
from collections.abc import Iterable, Iterator, Mapping

from tutelage.records import NOTED

BLANK = "[removed]"

_ALIASES = {
    "body_part_examined": "body_part",
    "protocol_name": "protocol",
    "findings": "report",
    "impression": "report",
    "radiology_report": "report",
}
"""What else headers and tables call fields of `NOTED`."""

_LETTERS = {"report": 4000}
_FEW_LETTERS = 200
"""At most so many are kept of a field."""

_TELLING = re.compile(
    r"(^|_)(names?|ids?|uid|birth\w*|born|dob|age|dates?|time|datetime|accession\w*|mrn|ssn|physicians?|doctor|"
    r"radiologist|referr\w*|requesting|performing|address|street|city|country|zip|phone|telephone|e?mail|"
    r"institution\w*|hospital|clinic|ward|department|station|operators?|insurance|number|patient|subject|"
    r"case|relative|occupation|ethnic\w*|religio\w*)(_|$)"
)
"""Names of fields whose values may tell who somebody is."""

_PERSON = re.compile(r"(^|_)(names?|physicians?|doctor|radiologist|operators?|relative)(_|$)")
"""Fields of words each of which is a name."""

_MONTH = r"(?:jan|feb|mar|m\u00e4r|apr|may|mai|jun|jul|aug|sep|oct|okt|nov|dec|dez)[^\W\d_]*\.?"
_LOOKS = (
    re.compile(r"[^\s@]+@[^\s@]+\.[^\s@]+"),
    re.compile(r"(?<!\d)\d{1,4}\s?[./-]\s?\d{1,2}\s?[./-]\s?\d{1,4}(?!\d)"),
    re.compile(rf"(?<!\d)\d{{1,2}}(?:st|nd|rd|th|\.)?\s+{_MONTH}(?:,?\s+\d{{2,4}})?(?!\d)", re.IGNORECASE),
    re.compile(rf"(?<![^\W_]){_MONTH}\s+\d{{1,2}}(?:st|nd|rd|th)?,?\s+\d{{4}}(?!\d)", re.IGNORECASE),
    re.compile(r"\d(?:[ /-]?\d){5,}"),
    re.compile(
        r"(?<![^\W_])(?:dr|prof|mr|mrs|ms|herr|frau|mme)\.?\s+(?:[^\W\d_][\w'.-]*\s*){1,2}", re.IGNORECASE
    ),
)
"""What looks like mail, a date, a long number or a titled name."""

_FEWEST_LETTERS = 2
_SURELY = 5
"""Letters of a number that is blanked also in the middle of a word."""


def allowed(header: Mapping[str, str], known: Iterable[str] = ()) -> dict[str, str]:
    """Return the fields of a header that may leave, without what tells who the patient is.

    `known` are more values that do: the catalog's names of case and patient.
    """
    fields: dict[str, list[str]] = {}
    telling = {text.strip() for text in known}
    for name, text in header.items():
        plain = _plain(name)
        field = _ALIASES.get(plain, plain)
        if field in NOTED:
            fields.setdefault(field, []).append(" ".join(str(text).split()))
        elif _TELLING.search(plain):
            telling |= set(_terms(plain, str(text)))
    blanked = {field: _blanked(" ".join(texts), telling) for field, texts in fields.items()}
    cut = {field: text[: _LETTERS.get(field, _FEW_LETTERS)] for field, text in blanked.items()}
    return {field: cut[field] for field in NOTED if cut.get(field)}


def _plain(name: str) -> str:
    """Spell SeriesDescription, Series Description and series-description alike."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return re.sub(r"[^a-z0-9]+", "_", apart.lower()).strip("_")


def _terms(name: str, text: str) -> Iterator[str]:
    """What of a value must not be read: all of it, and each word of a person's name."""
    yield text.strip()
    yield text.strip().lstrip("0")
    if _PERSON.search(name):
        yield from re.split(r"[\s^=\\,;.]+", text)


def _blanked(text: str, telling: Iterable[str]) -> str:
    for term in sorted(telling, key=len, reverse=True):
        if len(term) < _FEWEST_LETTERS or (term.isdigit() and len(term) < 4):
            continue
        anywhere = len(term) >= _SURELY and any(letter.isdigit() for letter in term)
        pattern = re.escape(term) if anywhere else rf"(?<![^\W_]){re.escape(term)}(?![^\W_])"
        text = re.sub(pattern, BLANK, text, flags=re.IGNORECASE)
    for look in _LOOKS:
        text = look.sub(BLANK, text)
    return text
