"""Identifiers in text and headers: found, redacted, kept out of pictures; and what clinical text must not raise."""

import io
import json
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from mmedexpert_jax import privacy
from mmedexpert_jax.config import field_of
from mmedexpert_jax.mmedexpert.sources import collect
from mmedexpert_jax.processing import segments
from mmedexpert_jax.processing.images import clean, open_image

TEXTS = {
    "MR. SMITH was seen.": {"name"},
    "DR. HOUSE": {"name"},
    "Mr. van der Berg": {"name"},
    "Mrs. al-Hassan": {"name"},
    "Mr.\xa0d'Angelo": {"name"},
    "12/Mar/2021": {"date"},
    "DOB: 3 Apr 57": {"date"},
    "30.12.21": {"date"},
    "Pat.-Nr.: 123456": {"record number"},
    "Med Rec # 884422": {"record number"},
    "Hosp. No: H-99123": {"record number"},
    "ID-Nr.: 4711-22": {"record number"},
    "Study UID 1.2.840.113619.2.55.3.604688119.971": {"record number"},
    "Aadhaar 2345 6789 0123": {"record number"},
    "NPI 1234567893": {"record number"},
    "IBAN DE89 3704 0044 0532 0130 00": {"record number"},
    "04 / 03 / 2021": {"date"},
    "DOB: 04031962": {"date"},
    "2021年3月4日入院": {"date"},
    "0044 20 7946 0018": {"phone"},
    "Anna Weber, M.D.": {"name"},
    "Pt name - John Doe": {"name"},
    "Father's name: John": {"name"},
    "Mother: Jane Doe": {"name"},
    "c/o Jane Doe": {"name"},
    "Mrs. Alice Example was seen.": {"name"},
    "Patient name: Doe, Jane": {"name"},
    "Dr. Smith, MRN 1234567, seen on 2023-04-05": {"name", "record number", "date"},
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
MORE = {  # a line a kind, forms apart by a bar
    "name": "Patient: Jane Doe|seen by Dr. J. Smith|Prof. Dr. med. Erika Muster|Attending: Smith|Referring physician: "
    "John Smith|Pt: Doe J|NAME: JANE DOE|Name - John Smith|Monsieur Dupont|Herrn Müller|Reported by: A. Kumar|"
    "patient name is Jane Doe|Sr. García|Radiologist: Anna Berg|DOE^JANE^M|nurse Jones|Dr.Smith|Name: jane doe|"
    "Patientin: Erika Mustermann|Next of kin: Ann Doe|Signed by Müller|Mr. O'Neill",
    "date": "2020/01/03|2020.01.03|03-Jan-2020|3-JAN-2020|January 2020|20210304T101500|2021-03-04T10:15:00Z|"
    "DOB: 05 04 1961|03/2021|Dec-2020|03Jan2020|Sept. 3, 2020|5th of May 2019|Jan 3rd, 2020|4/5/61|3. März 2021",
    "record number": "MRN#12-34-56|ID no. 12345|Acc# 12345|UHID 12345|NHS No. 943 476 5919|Encounter number: 12345|"
    "Case no. 2021-334|Medicare ID 1EG4-TE5-MK73|1EG4-TE5-MK73|Versicherungsnummer: A123456789|SSN: 123456789|"
    "policy number 99-1234|Medical Record #: 5551234|PatientID=12345|Fallnr. 123456|MR# 445566|Hosp No: X1234|"
    "Account number 445566|Study ID 20-1234|Social Security No. 123 45 6789|Patient 's id: X99-12",
    "phone": "Phone: 555-0134|ph. 020 7946 0958|Tel: 030/1234567|(555)555-0134|contact no 98765 43210|Mob: 9876543210|"
    "555.555.0134|pager 5550134|1-800-555-0134|Handy: 0171 1234567|+447911123456|telephone number is 02079460958|"
    "555 555 0134",
    "address": "P.O. Box 123|221B Baker Street|12 Main Rd, Apt 4|Am Markt 5, 50667 Köln|wohnt in 10115 Berlin|"
    "5 rue de la Paix|address: Flat 3, Green House|742 Evergreen Terrace|12 long acre street|SW1A 1AA|Boston, MA 02115",
    "e-mail": "j.doe+x@mail.co.uk|jane(at)example.org|jane [at] example.org",
}
MORE["record number"] += (
    "|Study: A12345|Case: T1234-99|Specimen: S21-4455|ID: CD20123|ID: HIV-123456|Case: L45-2231|ID: C12345"
    "|MRN S12K4567|MRN: C4A8812|Case: S12-K4567|Specimen: HIV1-ab2233|Record: CD20A8812"
)
MORE["address"] += "|IL 62704|EC1A 1BB|M1 1AE|Reston, VA 20190-1234"
MORE["phone"] += "|1 800 555 0134|123-456-7890"
MORE["name"] += "|DR. SMITH|DR. J. SMITH|MR. JOHN SMITH|PROF. Meyer"
TEXTS |= {"Anna Weber, DO": {"name"}, "Jim Poe, D.O.": {"name"}}
MORE["name"] += (
    "|Attending: Dr. Carter|Radiologist: Dr. J. Carter|Referring Physician: Dr. Carter, MD|Signed by Dr. Carter|"
    "Hausarzt: Dr. med. Hans Weber|Befundet von: OA Dr. Klein|Reviewed by: Dr. med. univ. Karl Huber|"
    "Patient: John A. Smith|Patient: Maria Garcia Lopez|Frau Anna Maria Schmidt-Weber|Dr. Ludwig van Beethoven|"
    "Mr. John A. Smith|Patient name: Dr. John A. Smith|Mother: Mary Ann Smith|Hr. Müller|Fr. Schmidt|"
    "Familienname: Schmidt|Pat.: Müller, Hans|John Smith MD|Sr. Cortez"
)
MORE["name"] += (
    "|Reported by: Radiology, Smith John|Reported by: Radiology Smith John|Consultant: Cardiology Hans Meier|"
    "Physician: Internal Medicine John Smith|Pat: Dr. Anna Meier|Sr. Ureña"
)
MORE["phone"] += "|Mobil: 0171 2345678|Fax: 0711 / 12345|Fax 12 - 34 - 56 - 78"
MORE["record number"] += "|MRN: 12 345 678"
MORE["date"] += "|12. Mrz. 2020|Laborwerte 4.5.21|4.5.21 S. aureus"
MORE["date"] += "|3/4/19 NG tube|grade 12/03/19|03/04/12 years ago"
TEXTS |= {text: {"name"} for text in ("Name: John Smith 98%", "Patient name: Anna Meier 5 units pRBC")}
TEXTS |= {text: {kind} for kind, line in MORE.items() for text in line.split("|")}
CLINICAL = (
    "10/12/14 weeks",
    "Mini-Mental 24/30/28",
    "in 10000 Units heparin",
    "Patient: Alert, Oriented",
    "MR Angiography shows it; MS Relapse; MRS Spectroscopy",
    "5-10-15 mg of prednisone",
    "Mother: healthy. Father: Diabetes.",
    "version 1.2.3.4 of the score",
    "2月のCT",
    "The patient is 67-year-old. Patient: 45-year-old man. Patient: male. Case 12 of 20, visit 3, study of 2019.",
    "10000 Units of heparin; WBC 12000 Cells/uL, platelets 150,000; 5000 IU; incidence 1/2000 births; 3/4 of 120/80.",
    "pH 7.350 - 7.450, pCO2 40, cell count: 1200-1500; call if BP > 180/110; phone triage; a contact of 3 days.",
    "Sister Mary Joseph nodule, Virchow's node, Dr. is an abbreviation; drug name: aspirin; brand name: Tylenol.",
    "Performed by Mohs surgery. Nurse Practitioner visit. The surgeon: see below. T2-FLAIR, L4-L5, C5-C6, V1-V6.",
    "EF 55-60 %, FEV1 1.85 L (72 %), HLA-B27, CA 19-9 of 350, CD4 count 200-350, stage T2N1M0, ICD-10 I21.09.",
    "She lives in a nursing home 2 km from the main road and walks 500 m a day on a level street.",
    "ID of the lesion; IDs; PID with 3 episodes; MR of the brain; acc. to guidelines 2020; record of 12 seizures.",
    "A 67-year-old woman has a rate of 32 per minute, 120/80 mmHg and urea 9 mmol/L for 3 days.",
    "TSH 0.01 mU/L, T4 28; HbA1c 7.5-8.0 %; ratio 12/5/3; CD4 200; Na 140, K 4.0, grade 2-3",
    "In May she had a viral infection. Graves disease; Crohn's; Mr. is short for mitral regurgitation.",
    "VITAMIN B12 1MG DAILY, VIT D3 5MG, L4 5MM slip, T2 4CM mass, C5 6MM disc, L5 2ML, IL 20000 units, PD 10000 IU",
    "Specimen: CD20-positive B cells",
    "Specimen: CA125",
    "ID: HIV1/2 positive",
    "Case: T10/T12 fracture",
    "Study: L4-L5 discectomy",
    "Record: SpO2 98",
    "Acute Pancreatitis, DO NOT operate",
    "labs 140 138 1500",
    "24 Hr. Urine, 48-Hr. Holter, mg per Hr. Urine; 5-Fr. Sheath, Fr. Catheter",
    "Sr. Urea 40; Name: Insulin glargine 10 units",
    "Fr. Rippe, Fr. Rippen, Fr. Schenkelhals, Fr. Oberschenkel, Fr. Hüfte, Fr. Lendenwirbel",
    "pat: Chest Pain. Pat: Good Response. PAT: NSR Rate. Ms B Cell. Dr T Cell. Consultant: Neurology Team.",
    "Acute Pancreatitis MD\nDuchenne Muscular MD\nPrednisone Taper MD\nCall On MD",
    "cell 12 - 34 - 56 - 78, contact 10 - 20 / 30 - 40; dose 5/10/15 kg",
    "Sr. Creatinine 1.8 mg/dL, Sr. Bilirubin 2.1, Sr. Sodium 128; 16 Fr. Foley catheter",
    "Apgar 9/10/10, Apgar scores were 7/9/10; 5-10-15 min; grade 1/2/10; CD4 200 350 5000 cells",
    "Name: Aspirin 100 mg. Patient: Obese Woman. Mother: Healthy Woman. Mother: Diabetes mellitus.",
    "Surgeon: Vascular Surgery. Consultant: Neurology Team. Radiologist: Interventional Radiology.",
    "Z.n. Fr. Humeri, Fr. Radius; Study: 12 100 200 patients; Dr. says. Pneumonia; Miss A Dose",
    "Pat. Raucher, Diabetiker. Age-Related Macular Degeneration MD",
    "She has MS. Her exam shows weakness. Severe MR. Ejection fraction 30 %. Proliferative DR. Laser was done.",
    "T1 MR. DWI. MRS. Choline peak is raised.",
    "INR 2.0-3.0, dose 40-80-120 mg, ICD-10 E11.9, p = 0.05, 1,000,000 copies",
)


@pytest.mark.parametrize("text", [text for text in MORE["name"].split("|") if text[-1] not in ")."])
def test_no_part_of_a_name_is_left(text):
    left = privacy.redact(text).replace("[name]", "")
    assert left in ("", "Mother: ", "seen by ")


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


def a_volume() -> bytes:
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(np.arange(8, dtype=np.int16).reshape(4, 2, 1), np.eye(4))
    image.header["db_name"], image.header["descrip"] = b"DOE_JANE", b"scanned 2021-03-04"
    return image.to_bytes()


def a_series() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("scan/1.dcm", a_scan())
    return buffer.getvalue()


@pytest.mark.parametrize("make", [a_photograph, a_scan, a_png, a_volume, a_series])
def test_headers_are_reported_without_their_values_and_do_not_leave(make):
    data = make()
    assert any(word in data for word in (b"Jane", b"J\x00a", b"DOE_JANE"))
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


def part(marker: int, body: bytes) -> bytes:
    """A segment of a JPEG file."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


SAID = b"Patient John Doe"
IPTC = b"\x1c\x02\x78" + struct.pack(">H", len(SAID)) + SAID  # a caption, 2:120
PHOTOSHOP = b"Photoshop 3.0\08BIM\x04\x04\0\0" + struct.pack(">I", len(IPTC)) + IPTC + b"\0"
SEGMENTS = [(0xED, PHOTOSHOP), (0xEC, SAID), (0xE3, SAID), (0xE4, SAID), (0xE2, b"ICC_PROFILE\0\1\1" + SAID)]
SEGMENTS += [(0xE0, b"JFXX\0\x13" + SAID)]


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0, "quality": 95}])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_parts_of_a_jpeg_file_that_draw_no_pixel_are_cut_out_and_its_pixels_stay(mode, options):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)  # whose scans hold stuffed bytes
    Image.fromarray(noise).convert(mode).save(buffer, "JPEG", **options)
    plain = buffer.getvalue()
    assert clean(plain, "x") == plain
    for marker, body in SEGMENTS:
        assert clean(plain[:2] + part(marker, body) + plain[2:], "x") == plain
        assert clean(plain[:20] + part(marker, body) + plain[20:], "x") == plain  # behind the JFIF part
    assert clean(plain + SAID, "x") == plain
    named = plain[:2] + part(0xED, PHOTOSHOP) + plain[2:]
    assert [one.place for one in privacy.scan_header(named, "x")] == ["x, IPTC"]
    assert not privacy.scan_header(plain[:2] + part(0xED, b"Photoshop 3.0\0") + plain[2:], "x")
    broken = (plain[:-40], plain[:2], plain[:2] + part(0xC8, SAID) + plain[2:], b"GIF89a", b"")
    assert all(segments.bare(data) is None for data in broken)  # which the decoder takes, or refuses by name


def test_a_thumbnail_in_a_jpeg_file_is_cut_out_and_what_says_its_colours_stays():
    image = Image.new("RGB", (16, 8), (200, 30, 30))
    buffer, kept = io.BytesIO(), io.BytesIO()
    image.save(buffer, "JPEG")
    image.save(kept, "JPEG", keep_rgb=True)  # Adobe's part says that the channels are no luminance
    plain = buffer.getvalue()
    small = plain[:2] + part(0xE0, plain[6:18] + b"\2\1" + b"JohnDo") + plain[20:]
    assert clean(small, "x") == plain
    assert clean(kept.getvalue(), "x") == kept.getvalue()
    at = kept.getvalue().index(b"\xff\xee\0\x0eAdobe")
    longer = kept.getvalue()[at + 4 : at + 16] + b"JohnDo"
    assert clean(kept.getvalue()[:at] + part(0xEE, longer) + kept.getvalue()[at + 16 :], "x") == kept.getvalue()
    assert np.allclose(np.asarray(open_image(clean(kept.getvalue(), "x")))[0, 0], (200, 30, 30), atol=3)


def test_chunks_of_a_png_file_that_draw_no_pixel_are_cut_out_and_its_pixels_stay():
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), (1, 2, 3)).save(buffer, "PNG", dpi=(96, 96))
    plain = buffer.getvalue()
    assert b"pHYs" in plain and clean(plain, "x") == plain
    profile = chunk(b"iCCP", b"John Doe\0\0" + zlib.compress(b"none"))
    for extra in (profile, chunk(b"prVt", SAID), chunk(b"tIME", bytes(7))):
        assert clean(plain[:33] + extra + plain[33:], "x") == plain  # behind the header
        assert clean(plain[:-12] + extra + plain[-12:], "x") == plain  # before the end
    assert clean(plain + SAID, "x") == plain
    broken = (plain[:-5], plain[:8], plain[:-12] + chunk(b"CRIT", SAID) + plain[-12:])
    assert all(segments.bare(data) is None for data in broken)


def test_counts_are_by_kind_and_modes_are_named():
    rows = [privacy.scan("2020-01-01 to 2020-01-02", "question"), privacy.scan("Mrs. Smith, 2020-01-01", "trace"), []]
    date, name = privacy.counts(rows)
    assert date == {"kind": "date", "rows": 2, "findings": 3} and name == {"kind": "name", "rows": 1, "findings": 1}
    assert field_of("privacy").choices == tuple(privacy.MODES)
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
    assert pictured.flags[-1] == "identifying:header-removed" and b"Doe" not in pictured.images[0].plain()
    if mode == "refuse":
        (refused,) = found.rejected
        assert refused["reason"] == "identifying" and refused["detail"] == "date, name, record number in question"
        return
    assert found.counts["raw.jsonl", "flagged:identifying:date"] == 1
    assert found.records[0].question == (
        "[name], [record number], seen [date]. Why?" if mode == "redact" else row["question"]
    )
