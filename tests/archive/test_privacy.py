import pytest

from tutelage.archive.privacy import BLANK, allowed
from tutelage.records import NOTED

HEADER = {
    "PatientName": "Doe^John Quentin",
    "PatientID": "HX-4471",
    "PatientBirthDate": "19610523",
    "AccessionNumber": "0098123",
    "StudyDate": "20240131",
    "InstitutionName": "Saint Elsewhere",
    "ReferringPhysicianName": "House^Gregory",
    "SeriesDescription": "Abd portal venous",
    "ProtocolName": "Abdomen routine",
    "BodyPartExamined": "ABDOMEN",
    "KVP": "120",
    "SecretNewField": "John Doe was here",
}


def test_only_fields_of_the_list_leave() -> None:
    found = allowed(HEADER)
    assert found == {
        "body_part": "ABDOMEN",
        "protocol": "Abdomen routine",
        "series_description": "Abd portal venous",
    }
    assert set(found) <= set(NOTED)


@pytest.mark.parametrize(
    "said",
    [
        "Mr John Doe was seen",
        "DOE, JOHN",
        "doe's spleen",
        "scan of DOE_JOHN",
        "Quentin says",
        "no. HX-4471",
        "hx-4471/2",
        "acc 0098123",
        "acc 98123",
        "born 1961-05-23",
        "born 23.05.1961",
        "on 05/23/1961",
        "on 20240131",
        "on 31 January 2024",
        "on January 31st, 2024",
        "on 3. Mai 2024",
        "at Saint Elsewhere",
        "sent by Dr. Wilson",
        "asked by House",
        "call 030 1234567",
        "mail j.doe@example.org",
    ],
)
def test_what_tells_who_the_patient_is_is_blanked_out_of_free_text(said: str) -> None:
    text = allowed(HEADER | {"report": f"Status after splenectomy. {said} today. Liver is normal."})["report"]
    assert text.startswith("Status after splenectomy.")
    assert text.endswith("Liver is normal.")
    assert BLANK in text
    for secret in (
        "doe",
        "john",
        "quentin",
        "4471",
        "98123",
        "1961",
        "2024",
        "elsewhere",
        "wilson",
        "house",
        "1234567",
        "example",
    ):
        assert secret not in text.lower()


def test_what_says_nothing_about_the_person_stays() -> None:
    report = "Spleen 12 cm, 3 lesions up to 2.5 cm in segment 4a; CT with 120 kV, 1 mm slices; a gap."
    assert allowed(HEADER | {"report": report})["report"] == report


def test_identifying_values_are_blanked_out_of_short_fields_too() -> None:
    told = allowed(HEADER | {"SeriesDescription": "Doe 20240131 liver"})["series_description"]
    assert told == f"{BLANK} {BLANK} liver"


def test_names_the_catalog_knows_are_blanked() -> None:
    assert allowed({"report": "Patient p-17 again"}, ("case-1", "p-17"))["report"] == f"Patient {BLANK} again"


def test_columns_of_tables_are_known_however_they_are_spelt() -> None:
    found = allowed(
        {"Series Description": "T1", "patient_name": "Ada Byron", "Findings": "Byron: spleen absent"}
    )
    assert found == {"series_description": "T1", "report": f"{BLANK}: spleen absent"}


def test_a_field_is_cut_before_it_fills_a_question() -> None:
    found = allowed({"report": "spleen " * 2000, "ProtocolName": "x" * 999})
    assert (len(found["report"]), len(found["protocol"])) == (4000, 200)
