"""Identifiers in text and headers: found, redacted, kept out of pictures; and what clinical text must not raise."""

import io
import json

import pytest
from PIL import Image, PngImagePlugin

from mmedexpert_jax import privacy
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.mmedexpert.sources import collect
from mmedexpert_jax.processing.images import clean, open_image

TEXTS = {
    "Mrs. Alice Example was seen.": {"name"},
    "Patient name: Doe, Jane": {"name"},
    "DOE^JANE": {"name"},
    "Seen on 2023-04-05 and on 3 March 2021": {"date"},
    "DOB 04/05/1961": {"date"},
    "Geboren am 5.4.1961": {"date"},
    "StudyDate 20210304": {"date"},
    "MRN: 1234567": {"record number"},
    "hospital no. AB-99812": {"record number"},
    "accession number 20-55123": {"record number"},
    "SSN 123-45-6789": {"record number"},
    "Tel. +44 20 7946 0958": {"phone"},
    "call (555) 555-0134": {"phone"},
    "write to jane.doe@example.org": {"e-mail"},
    "lives at 12 Long Acre Street": {"address"},
    "wohnt Hauptstraße 12": {"address"},
    "Springfield, IL 62704": {"address"},
}
CLINICAL = (
    "A 67-year-old woman has a rate of 32 per minute, 120/80 mmHg and urea 9 mmol/L for 3 days.",
    "TSH 0.01 mU/L, T4 28; HbA1c 7.5-8.0 %; ratio 12/5/3; CD4 200; Na 140, K 4.0, grade 2-3",
    "In May she had a viral infection. Graves disease; Crohn's; Mr. is short for mitral regurgitation.",
    "INR 2.0-3.0, dose 40-80-120 mg, ICD-10 E11.9, p = 0.05, 1,000,000 copies",
)


@pytest.mark.parametrize("text", TEXTS)
def test_identifiers_with_a_form_or_marker_are_found_and_redacted(text):
    assert {found.kind for found in privacy.scan(text, "question")} == TEXTS[text]
    redacted = privacy.redact(text)
    assert not privacy.scan(redacted, "question") and all(f"[{kind}]" in redacted for kind in TEXTS[text])


@pytest.mark.parametrize("text", CLINICAL)
def test_plain_clinical_text_raises_nothing(text):
    assert not privacy.scan(text, "question") and privacy.redact(text) == text


def a_photograph() -> bytes:
    exif = Image.Exif()
    exif[0x010E], exif[0x013B] = "Jane Doe, MRN 123456", "Dr. Who"
    exif.get_ifd(0x8825)[1] = "N"
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), (9, 9, 9)).save(buffer, "JPEG", exif=exif, comment=b"Jane Doe")
    return buffer.getvalue()


def a_scan() -> bytes:
    pydicom = pytest.importorskip("pydicom")
    dataset = pydicom.dcmread(pydicom.data.get_testdata_file("CT_small.dcm"))
    dataset.PatientName, dataset.PatientBirthDate, dataset.PatientID = "Doe^Jane", "19610405", "MRN123456"
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def a_png() -> bytes:
    info, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
    info.add_text("Comment", "Jane Doe")
    Image.new("L", (20, 10)).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


@pytest.mark.parametrize("make", [a_photograph, a_scan, a_png])
def test_headers_are_reported_without_their_values_and_do_not_leave(make):
    data = make()
    assert any(word in data for word in (b"Jane", b"J\x00a"))
    found = privacy.scan_header(data, "case 1, image 1")
    assert found and all(one.kind == "header" and "Jane" not in one.place for one in found)
    sent = clean(data, "case 1, image 1")
    for word in (b"Jane", b"Doe", b"123456", b"19610405"):
        assert word not in sent
    assert not privacy.scan_header(sent, "x") and not open_image(data).info


def test_an_ordinary_file_is_left_as_it_is():
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10)).save(buffer, "JPEG")
    assert clean(buffer.getvalue(), "x") == buffer.getvalue() and not privacy.scan_header(buffer.getvalue(), "x")


def test_counts_are_by_kind_and_modes_are_named():
    rows = [privacy.scan("2020-01-01 to 2020-01-02", "question"), privacy.scan("Mrs. Smith, 2020-01-01", "trace"), []]
    date, name = privacy.counts(rows)
    assert date == {"kind": "date", "rows": 2, "findings": 3} and name == {"kind": "name", "rows": 1, "findings": 1}
    with pytest.raises(ConfigError, match="report, redact, refuse"):
        privacy.check_mode("hide")
    assert "burned into pixels" in privacy.BLIND


@pytest.mark.parametrize("mode", privacy.MODES)
def test_raw_cases_are_reported_redacted_or_refused_and_their_headers_stay_behind(mode, tmp_path):
    (tmp_path / "x.dcm").write_bytes(a_scan())
    row = {
        "question": "Mrs. Alice Example, MRN: 1234567, seen 2023-04-05. Why?",
        "options": ["flu", "asthma"],
    }
    plain = {"question": "A woman coughs. Cause?", "options": ["flu", "asthma"], "answer": "A", "images": ["x.dcm"]}
    rows = [row | {"answer": "B"}, plain]
    (tmp_path / "raw.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = collect([str(tmp_path / "raw.jsonl")], privacy=mode)
    pictured = found.records[-1]
    assert pictured.flags[-1] == "identifying:header-removed" and b"Doe" not in pictured.images[0].data
    if mode == "refuse":
        (refused,) = found.rejected
        assert refused["reason"] == "identifying" and refused["detail"] == "date, name, record number in question"
        return
    assert found.counts["raw.jsonl", "flagged:identifying:date"] == 1
    assert found.records[0].question == (
        "[name], [record number], seen [date]. Why?" if mode == "redact" else row["question"]
    )
