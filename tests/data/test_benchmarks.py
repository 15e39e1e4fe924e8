"""What all benchmarks share: the registry, places that files lie in, samples, the census, cases as items."""

import io
import json
import pickle
import sys
import types
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmedexpert_jax.data import benchmarks, load_cases
from mmedexpert_jax.data.benchmarks import subset
from mmedexpert_jax.data.case import Case
from mmedexpert_jax.errors import ConfigError, DataError, RemoteError
from mmedexpert_jax.processing.images import ImageRef

ROW = {"id": "Text-0", "question": "Which?", "options": {"A": "x", "B": "y"}, "label": "A"}
PAPER = {"medxpertqa_mm", "pmc_vqa", "omnimedvqa", "gmai_mmbench", "mmedexpert_mini"}
OTHERS = {"medxpertqa_text", "vqa_rad", "slake", "pathvqa", "mmmu_medical", "medqa", "medmcqa", "pubmedqa"}
OTHERS |= {"medbullets", "mmlu_medical", "supergpqa_medicine", "medframeqa"}
OTHERS |= {"cmb", "cmexam", "cmmlu_medical", "medqa_mcmle", "healthbench"}
OTHERS |= {"iu_xray", "chexpert_plus", "mimic_cxr"}
PLACED = {"iu_xray", "chexpert_plus", "mimic_cxr"}  # that no hub distributes


def text_benchmark(root, count=1, **changes):
    rows = [ROW | {"id": f"Text-{n}", "medical_task": "ABC"[n % 3], **changes} for n in range(count)]
    (root / "Text").mkdir(parents=True, exist_ok=True)
    (root / "Text" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


# The registry ---------------------------------------------------------------------------------------------------------


def test_the_papers_benchmarks_and_the_others_are_known():
    assert set(benchmarks.names()) == PAPER | OTHERS
    for name in benchmarks.names():
        spec = benchmarks.spec(name)
        assert spec.title and spec.licence and spec.expects and (spec.hub or spec.default or name in PLACED)
        for split in spec.splits:
            assert isinstance(spec.published(split, spec.subsets[0]), dict)


# MedEvalKit's own names (benchmarks.py of a fork of it) and ours; None: docs/evaluation.md says why it is not here.
KIT = {
    "MMMU-Medical-val": "mmmu_medical",
    "MMMU-Medical-test": None,
    "PATH_VQA": "pathvqa",
    "PMC_VQA": "pmc_vqa",
    "VQA_RAD": "vqa_rad",
    "SLAKE": "slake:all",
    "OmniMedVQA": "omnimedvqa",
    "MedXpertQA-Text": "medxpertqa_text",
    "MedXpertQA-MM": "medxpertqa_mm",
    "MedFrameQA": "medframeqa",
    "Rad-ReStruct": None,
    "MedQA_USMLE": "medqa",
    "MedMCQA": "medmcqa",
    "PubMedQA": "pubmedqa",
    "Medbullets_op4": "medbullets:op4",
    "Medbullets_op5": "medbullets:op5",
    "SuperGPQA": "supergpqa_medicine",
    "HealthBench": "healthbench",
    "MMLU-medical": "mmlu_medical:nine",
    "MMLU-all": None,
    "CMB": "cmb",
    "CMExam": "cmexam",
    "CMMLU": "cmmlu_medical",
    "MedQA_MCMLE": "medqa_mcmle",
    "IU_XRAY": "iu_xray",
    "CheXpert_Plus": "chexpert_plus",
    "MIMIC_CXR": "mimic_cxr",
}


@pytest.mark.parametrize("name", KIT)
def test_each_set_of_medevalkit_is_here_or_the_page_says_why_not(name):
    if KIT[name] is None:
        assert f"{name}:" in (Path(__file__).parents[2] / "docs/evaluation.md").read_text()
        return
    ours, _, subset = KIT[name].partition(":")
    spec = benchmarks.registry.spec(ours)
    assert (not subset or subset in spec.subsets) and spec.licence


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("medxpertqa",), ConfigError, "no benchmark 'medxpertqa'; did you mean medxpertqa_"),
        (("pmc_vqa", ""), ConfigError, "pmc_vqa needs a source: a directory or zip with test_2.csv"),
        (("pmc_vqa", "/no/such"), DataError, "no such directory or zip: /no/such; give one with test_2.csv"),
        (
            ("slake:zh", "/tmp"),
            ConfigError,
            "slake:zh is an entry; give slake, and subset and split by name, or `load_e",
        ),
        (("none.py", ""), ConfigError, "no such benchmark file: none.py"),
        (
            ("/tmp",),
            ConfigError,
            "/tmp is a path; say what it holds: NAME=/tmp, of one's own cases mmedexpert_mini=/tmp",
        ),
        (("mmedexpert_mini", "hub"), ConfigError, "mmedexpert_mini is not on the hub"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(arguments, error, words):
    with pytest.raises(error) as caught:
        benchmarks.load(*arguments)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_split_names_those_there_are(tmp_path):
    with pytest.raises(ConfigError, match="gmai_mmbench has no split 'test': choose one of val"):
        benchmarks.load("gmai_mmbench", tmp_path, split="test")


def test_a_wrong_directory_names_what_it_holds_and_what_is_needed(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"holds no .*_VAL.tsv.* \(but notes.txt\); give the place with GMAI_mm_bench"):
        benchmarks.load("gmai_mmbench", tmp_path)
    (tmp_path / "broken.zip").write_bytes(b"PK")
    for source in (tmp_path, tmp_path / "broken.zip"):
        with pytest.raises(DataError, match=r"broken.zip is not a readable zip.*fetch it again"):
            benchmarks.load("gmai_mmbench", source)


OWN = '''
"""A user's benchmark: rows of one JSON Lines file."""
from mmedexpert_jax.data import benchmarks
from mmedexpert_jax.data.benchmarks import rows

def item(row, files, subset):
    return benchmarks.Item(row.text("id"), "mine", row.text("q"), (), row.text("a"), kind="open")

def found(files, split, subset):
    return rows.read(files.one("mine.jsonl"))

benchmarks.register(benchmarks.Spec("mine", "Mine", found, item))
'''


def test_a_users_file_registers_a_benchmark(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "mine.jsonl").write_text('{"id": "1", "q": "Where?", "a": "left lung"}\n\n')
    try:
        found = benchmarks.load(str(tmp_path / "mine.py"), tmp_path / "mine.jsonl")
        assert (found.title, found.items[0].answer, found.items[0].kind) == ("Mine", "left lung", "open")
        assert "mine" in benchmarks.names()
    finally:
        benchmarks.registry._SPECS.pop("mine", None)
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ConfigError, match="registers 0 benchmarks"):
        benchmarks.load(str(tmp_path / "empty.py"), tmp_path)


CHOICES = """
from mmedexpert_jax.data import benchmarks
from mmedexpert_jax.data.benchmarks import rows

def item(row, files, subset):
    said = row if isinstance(row, dict) else row.values
    shared = {"labels": {"ward": "3"}, "meta": {"kit": "k"}}
    return benchmarks.Item(said["id"], "mine", said["q"], ("x", "y"), said["a"], **shared)

def found(files, split, subset):
    return [ROW for row in rows.read(files.one("mine.jsonl"))]

benchmarks.register(benchmarks.Spec("mine", "Mine", found, item))
"""


@pytest.mark.parametrize("kind", ["row", "row.values"])
def test_a_users_rows_give_their_columns_to_rewards_and_not_to_scores(tmp_path, kind):
    code = CHOICES.replace("ROW", kind)
    (tmp_path / "mine.py").write_text(code)
    row = {"id": "1", "q": "Where?", "a": "B", "level": 3, "exp": {"why": ["x"]}, "kit": "other", "none": None}
    (tmp_path / "mine.jsonl").write_text(json.dumps(row))
    entry = f"{tmp_path / 'mine.py'}={tmp_path / 'mine.jsonl'}"
    try:
        (case,) = load_cases(f"benchmark:{entry}", "train")
        (item,) = benchmarks.load_entry(entry).items
    finally:
        benchmarks.registry._SPECS.pop("mine", None)
    assert case.columns == {key: value for key, value in row.items() if key != "none"} | {"kit": "k"}
    assert case.labels == {"ward": "3"} and item.columns == {"kit": "k"}


def test_a_published_row_gives_its_columns_without_its_picture():
    (case,) = load_cases("benchmark:mmedexpert_mini@test", "train", limit=1)
    assert case.columns["source"] and not any(callable(value) for value in case.columns.values())


# Places ---------------------------------------------------------------------------------------------------------------


class FakeHub(types.ModuleType):
    """Takes the place of `datasets` and of the hub's listing; notes what is downloaded."""

    def __init__(self, root):
        super().__init__("datasets")
        self.root, self.downloaded = root, []
        hub = self

        class DownloadManager:
            def download(self, url):
                hub.downloaded.append(url)
                return str(root / url.split("/", 5)[5])

        self.DownloadManager = DownloadManager

    def list_repo_files(self, repository, repo_type):
        assert repo_type == "dataset"
        if repository == "no/such":
            raise OSError("401 Client Error:\nRepository Not Found")
        return [path.relative_to(self.root).as_posix() for path in sorted(self.root.rglob("*.*"))]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    import huggingface_hub

    hub = FakeHub(tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "datasets", hub)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, *a, **k: hub.list_repo_files(*a, **k))
    return hub


def test_the_hub_gives_the_needed_files_only(hub):
    text_benchmark(hub.root)
    (hub.root / "images.zip").write_bytes(b"517 MB that nobody needs")
    local = benchmarks.load("medxpertqa_text", hub.root / "Text")
    assert benchmarks.load("medxpertqa_text", "hub").items == local.items
    assert hub.downloaded == ["hf://datasets/TsinghuaC3I/MedXpertQA/Text/test.jsonl"]
    assert benchmarks.load("medxpertqa_text", "hub:some/copy").items == local.items
    with pytest.raises(RemoteError, match=r"hub:no/such: 401 Client Error: Repository Not Found; download it by hand"):
        benchmarks.load("medxpertqa_text", "hub:no/such")
    with pytest.raises(RemoteError, match="hub:RadGenome/PMC-VQA has no file test_2"):
        benchmarks.load("pmc_vqa", "hub")


def test_zips_of_the_hub_are_looked_into(hub):
    row = ROW | {"images": ["MM-0-a.png"], "id": "MM-0"}
    (hub.root / "MM").mkdir(parents=True)
    (hub.root / "MM" / "test.jsonl").write_text(json.dumps(row))
    with zipfile.ZipFile(hub.root / "images.zip", "w") as archive:
        archive.writestr("images/MM-0-a.png", b"bytes")
    (item,) = benchmarks.load("medxpertqa_mm", "hub").items
    assert item.images[0].open() == b"bytes"


def test_items_travel_between_processes_and_images_are_read_late(tmp_path):
    row = ROW | {"images": ["a.png"], "id": "MM-0"}
    (tmp_path / "MM").mkdir()
    (tmp_path / "MM" / "test.jsonl").write_text(json.dumps(row))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"first")
    (item,) = benchmarks.load("medxpertqa_mm", tmp_path).items
    (tmp_path / "images" / "a.png").write_bytes(b"second")
    copy = pickle.loads(pickle.dumps(item))
    assert copy == item and copy.images[0].open() == b"second"
    assert copy.images[0].sha256 == "16367aacb67a4a017c8da8ab95682ccb390863780f7114dda0a0e0c55644c7c4"
    (tmp_path / "images" / "a.png").unlink()
    with pytest.raises(DataError, match=r"a.png: the image cannot be read"):
        item.images[0].open()


# Samples --------------------------------------------------------------------------------------------------------------


def items_of(tasks):
    return [Case(str(n), "q", ("x", "y"), "A", labels={"task": task}, benchmark="b") for n, task in enumerate(tasks)]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from("aaab"), min_size=2, max_size=60), st.data())
def test_a_sample_is_in_proportion_nested_and_in_order(tasks, data):
    items = items_of(tasks)
    small, large = sorted(data.draw(st.integers(1, len(items))) for _ in range(2))
    seed = data.draw(st.integers(0, 5))
    chosen, more = (subset.stratified(items, limit, seed, ("task",)) for limit in (small, large))
    assert len(chosen) == small and set(map(id, chosen)) <= set(map(id, more))
    assert [int(item.id) for item in more] == sorted(int(item.id) for item in more)
    for task, count in Counter(tasks).items():
        found = sum(item.labels["task"] == task for item in chosen)
        assert abs(found - small * count / len(items)) <= 2


def test_samples_follow_the_seed_and_the_limit_is_applied(tmp_path):
    text_benchmark(tmp_path, 90)
    first, again, other = (
        [item.id for item in benchmarks.load("medxpertqa_text", tmp_path, limit=30, seed=seed).items]
        for seed in (1, 1, 2)
    )
    assert first == again != other and len(first) == 30
    found = benchmarks.load("medxpertqa_text", tmp_path, limit=30)
    assert Counter(item.labels["medical_task"] for item in found.items) == {"A": 10, "B": 10, "C": 10}
    assert found.census["items"] == 90 and "taken: 30" in benchmarks.describe(found)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=3), min_size=4, max_size=40), st.integers(0, 3))
def test_what_is_drawn_shares_no_image_with_the_rest(images, seed):
    items = [
        Case(str(n), "q", (), "A", images=tuple(ImageRef(str(name), bytes) for name in names), benchmark="b")
        for n, names in enumerate(images)
    ] + [Case(f"own-{n}", "q", (), "A", images=(ImageRef(f"own-{n}", bytes),), benchmark="b") for n in range(4)]
    drawn, rest = subset.apart_by_image(items, 4, seed)
    assert len(drawn) == 4 and sorted(i.id for i in drawn + rest) == sorted(i.id for i in items)
    shown = [{image.name for item in part for image in item.images} for part in (drawn, rest)]
    assert not shown[0] & shown[1]


def test_what_cannot_be_drawn_is_said():
    items = [Case(str(n), "q", (), "A", images=(ImageRef("same", bytes),), benchmark="b") for n in range(5)]
    with pytest.raises(DataError, match="5 items do not hold 2 that share no image"):
        subset.apart_by_image(items, 2, 0)


# The census -----------------------------------------------------------------------------------------------------------


def test_the_census_counts_and_says_what_differs(tmp_path):
    text_benchmark(tmp_path, 4)
    found = benchmarks.load("medxpertqa_text", tmp_path)
    assert found.census["answers"] == {"A": 4} and found.census["options"] == {"2": 4}
    assert found.census["labels"]["medical_task"] == {"A": 2, "B": 1, "C": 1}
    assert found.census["differs"] == ["items 4 (2450)"]
    text = benchmarks.describe(found)
    assert text.startswith("MedXpertQA-Text: 4 items of 4 rows, 0 images\n")
    assert "differs from the published counts, which stand in brackets:\n    items 4 (2450)" in text


# Cases as items -------------------------------------------------------------------------------------------------------


def test_the_embedded_test_split_is_a_benchmark():
    found = benchmarks.load("mmedexpert_mini")
    cases = load_cases("mini", "test")
    assert len(found.items) == len(cases) and not found.census["malformed"]
    with_image = next(n for n, case in enumerate(cases) if case.images)
    item, case = found.items[with_image], cases[with_image]
    assert (item.id, item.question, item.options, item.answer) == (case.id, case.question, case.options, case.answer)
    assert item.labels["specialty"] == case.specialty and found.labels == ("specialty",)
    with Image.open(io.BytesIO(item.images[0].open())) as image:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(case.images[0].picture()))
    assert item.images[0].sha256 == benchmarks.from_case(case).images[0].sha256


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("1 / 0", ConfigError, "mine.py cannot be run: ZeroDivisionError"),
        ("def f(:", ConfigError, "mine.py cannot be run: SyntaxError"),
        ("import nothing_of_that_name", ConfigError, "ModuleNotFoundError"),
        (OWN.replace('row.text("id")', 'row.values["id"]'), DataError, "row 1: mine cannot read it (KeyError: 'id')"),
    ],
)
def test_a_fault_in_a_users_file_is_one_line(tmp_path, text, error, words):
    (tmp_path / "mine.py").write_text(text)
    (tmp_path / "mine.jsonl").write_text('{"q": "Which?", "a": "x"}')
    with pytest.raises(error) as caught:
        benchmarks.load(str(tmp_path / "mine.py"), tmp_path)
    assert words in str(caught.value) and "\n" not in str(caught.value)
