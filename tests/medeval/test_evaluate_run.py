import json

import numpy as np
import pytest
from PIL import Image

from mmedexpert_jax import load_config, medeval
from mmedexpert_jax.errors import ConfigError, DataError
from mmedexpert_jax.launch.jobs import run_job
from mmedexpert_jax.medeval import Evaluation
from mmedexpert_jax.medeval.results import slug
from mmedexpert_jax.models import Model, ModelConfig, save_pretrained
from mmedexpert_jax.models.config import TextConfig, VisionConfig
from mmedexpert_jax.models.network import tensor_shapes
from mmedexpert_jax.models.tree import nest
from mmedexpert_jax.runtime import Run


def save_random(path, seed, processor):
    text = TextConfig(400, 16, 24, 1, 2, 1, mrope_section=(2, 1, 1))
    vision = VisionConfig("qwen2_vl", depth=1, hidden_size=8, intermediate_size=16, num_heads=1, out_hidden_size=16)
    model = Model(ModelConfig(text, vision, True, 398, 399, 395, 396, 386, 386, (388, 386)))
    rng = np.random.default_rng(seed)
    shapes = tensor_shapes(model.config)
    params = nest({key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()})
    save_pretrained(path, model, params, processor)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, processor):
    """Two random models and a data set of four text cases."""
    folder = tmp_path_factory.mktemp("evaluation")
    for seed, name in enumerate(("first", "second")):
        save_random(folder / name, seed, processor)
    rows = [
        {
            "id": str(i),
            "question": f"Which of {i}?",
            "options": ["one", "two"],
            "answer": "AB"[i % 2],
            "specialty": "AM",
            "task": "t",
        }
        for i in range(4)
    ]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def settings(folder, **changes):
    config = load_config("configs/evaluate.py:mini").unlock()
    config.model.path, config.compare = f"{folder}/first", (f"tuned={folder}/second",)
    config.data.path = str(folder)
    # 16 rows, to which the engine admits 4 questions at a time: a data set is one block
    config.batch_size, config.max_prompt_length, config.max_new_tokens = 16, 256, 4
    config.update(changes)
    return config


def execute(config, path):
    with Run.open(path, config) as run:
        medeval.run(config, run)
        return run.summary


def test_run_leaves_rows_tables_and_a_report(folder, tmp_path):
    """The real model and sampler, from directory to report."""
    summary = execute(settings(folder), tmp_path)
    found = summary["benchmarks"]["mmedexpert_mini"]
    first = f"{folder}/first"
    assert list(found) == [first, "tuned"]
    rows = sorted((tmp_path / "export" / "rows" / "mmedexpert-mini").iterdir())
    assert len(rows) == 2 and all(len(Evaluation.read(path).rows) == 4 for path in rows)
    assert json.loads((tmp_path / "export" / "summary.json").read_text()) == summary["benchmarks"]
    table = (tmp_path / "table.md").read_text()
    assert "always A" in table and "chance (uniform guess) | 50.0" in table and "Paired comparison" in table
    assert {p.suffix for p in (tmp_path / "export" / "tables").glob("mmedexpert-mini.*")} == {
        *(".md", ".csv", ".tex", ".json")
    }
    page = (tmp_path / "report.html").read_text()
    assert "always A" in page and "http" not in page.replace("http-equiv", "")


def test_a_resumed_run_asks_nothing_that_is_stored(folder, tmp_path, sampler):
    config = settings(folder, max_new_tokens=64)
    sampler.say = lambda row, sample: "<answer>A</answer>" if len(sampler.calls) < 2 else 1 / 0
    with pytest.raises(ZeroDivisionError):
        execute(config, tmp_path)
    assert stored(tmp_path) == 4  # of the first model
    sampler.say = lambda row, sample: "<answer>B</answer>"
    execute(config, tmp_path)
    assert len(sampler.calls) == 3  # first; second, cut off; second
    read = {p.stem: Evaluation.read(p).rows[0].said for p in (tmp_path / "export" / "rows").rglob("*.jsonl")}
    assert read.pop("tuned") == "B" and list(read.values()) == ["A"]


def test_another_config_goes_on_with_the_stored_answers(folder, tmp_path, sampler):
    config = settings(folder, max_new_tokens=64, compare=(), workdir=str(tmp_path / "run"))
    assert run_job(config)
    calls, rows = len(sampler.calls), tmp_path / "run" / "export" / "rows" / "mmedexpert-mini"
    assert run_job(config) and len(sampler.calls) == calls  # the same command: tables anew, nothing asked
    more = settings(folder, max_new_tokens=64, workdir=str(tmp_path / "run"))
    assert run_job(more) and len(sampler.calls) == calls + 1  # one model more: its questions alone
    assert len(list(rows.iterdir())) == 2
    assert run_job(config) and len(list(rows.iterdir())) == 1  # nothing is left of the other
    assert run_job(settings(folder, max_new_tokens=64, compare=(), workdir=str(tmp_path / "run"), fresh=True))
    assert len(sampler.calls) == calls * 2 + 1  # asked again


def test_what_somebody_put_beside_rows_and_tables_stays(folder, tmp_path, sampler):
    run_job(settings(folder, max_new_tokens=64, workdir=str(tmp_path)))
    made = {path.relative_to(tmp_path) for path in (tmp_path / "export").rglob("*") if path.is_file()}
    theirs = ("tables/my_notes.csv", "tables/tableau.md", "rows/reviewed/doctor.jsonl", "rows/mmedexpert-mini/x.jsonl")
    for name in theirs:
        place = tmp_path / "export" / name
        place.parent.mkdir(exist_ok=True)
        place.write_text("mine")
    run_job(settings(folder, max_new_tokens=64, compare=(), workdir=str(tmp_path)))
    assert all((tmp_path / "export" / name).read_text() == "mine" for name in theirs)
    left = {path.relative_to(tmp_path) for path in (tmp_path / "export").rglob("*") if path.is_file()}
    gone = made - left  # of the model that is asked no more, and tables of several models
    assert "export/rows/mmedexpert-mini/tuned.jsonl" in map(str, gone)
    assert {str(path) for path in left - made} == {f"export/{name}" for name in theirs}


def test_names_of_any_length_are_names_of_files():
    names = [letter * 300 + end for letter in ("a", "é", "病") for end in ("x", "y")]
    assert len({slug(name) for name in names}) == 6 and max(len(slug(name).encode()) for name in names) <= 240
    assert slug("a" * 240) == "a" * 240 and slug("runs/a b") == "runs-a-b"


def test_processes_share_the_questions_and_one_makes_the_tables(folder, tmp_path, sampler):
    config = settings(folder, max_new_tokens=64, compare=())
    asked = []
    for process in range(2):
        share = settings(folder, max_new_tokens=64, compare=(), processes=2, process=process)
        execute(share, tmp_path / f"process-{process}")
        asked.append(stored(tmp_path))
    assert asked[-1] == 4 and 0 <= asked[0] <= 4
    calls = len(sampler.calls)
    assert not (tmp_path / "process-0" / "table.md").exists()
    summary = execute(config, tmp_path)
    assert len(sampler.calls) == calls  # all was there
    (figures,) = summary["benchmarks"]["mmedexpert_mini"].values()
    assert figures["items"] == 4 and figures["accuracy"] == 0.5


def stored(folder):
    return sum(len(path.read_text().splitlines()) for path in (folder / "answers").rglob("*.jsonl"))


def test_two_models_of_one_name(folder, tmp_path):
    with pytest.raises(ConfigError, match="two models are called 'a'"):
        execute(settings(folder, compare=(f"a={folder}/first", f"a={folder}/second")), tmp_path)
    with pytest.raises(ConfigError, match="'a/b' and 'a-b' would share files"):
        execute(settings(folder, compare=("endpoint:a/b@http://x/v1", "endpoint:a-b@http://x/v1")), tmp_path)
    with pytest.raises(ConfigError, match="no file can be called"):
        execute(settings(folder, compare=("endpoint:::@http://x/v1",)), tmp_path)


def test_questions_that_a_model_cannot_take(folder, tmp_path, sampler, capsys):
    config = settings(folder, max_prompt_length=20, compare=())
    with pytest.raises(DataError, match=r"mmedexpert_mini 0: a prompt of \d+ tokens .* limit of 20"):
        execute(config, tmp_path / "stops")
    with pytest.raises(
        DataError, match="all 4 questions of mmedexpert_mini were refused"
    ):  # 0.0 % of none is no figure
        execute(settings(folder, max_prompt_length=20, compare=(), skip_broken=True), tmp_path / "goes-on")
    assert "4 questions of mmedexpert_mini left out: mmedexpert_mini 0: a prompt of" in capsys.readouterr().out


def test_controls_stand_beside_every_model(folder, tmp_path, sampler):
    """A model that answers A whatever it is shown: half right, rotated as well, and its letter is named."""
    sampler.say = lambda row, sample: "<answer>A</answer>"
    execute(settings(folder, max_new_tokens=64, controls=("shuffle", "blank")), tmp_path)
    table = (tmp_path / "export" / "tables" / "mmedexpert-mini-controls.md").read_text()
    row = "| tuned | options rotated | 4 | 50.0 | 50.0 | +0.0 (-100.0, +100.0) | 0.0 | A +50.0 |"
    assert row in table, table
    assert "a grey image" not in table  # no item has an image
    headline = (tmp_path / "export" / "tables" / "mmedexpert-mini.md").read_text()
    assert "loss, options rotated" in headline and "+0.0 (-100.0, +100.0)" in headline


def test_all_controls_are_asked_in_one_pass_and_nothing_twice(tmp_path, sampler, processor):
    """Four questions, two with an image: each conversation is asked once, in blocks that mix the controls."""
    rows = [
        {"id": str(i), "question": "Which?", "options": ["one", "two"], "answer": "AB"[i % 2], "images": [f"{i}.png"]}
        for i in range(2)
    ]
    rows += [{"id": str(i), "question": f"Which of {i}?", "options": ["one", "two"], "answer": "A"} for i in (2, 3)]
    for number in range(2):
        pixels = np.full((56, 56), 100, np.uint8)
        pixels[20 : 30 + number] = 200
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    every = ("blank", "other_image", "question_only", "shuffle", "pairs")
    config = settings(tmp_path, compare=(), max_new_tokens=64, controls=every)
    config.model.path = f"{tmp_path}/model"
    save_random(tmp_path / "model", 0, processor)
    sampler.say = lambda row, sample: "<answer>A</answer>"
    execute(config, tmp_path / "run")
    asked = [row for call in sampler.calls for row in call["rows"]]
    # 4 as they are; one grey image and one bare question, which both items share; each other's image makes the same
    # conversations as the plain ones, since the questions are equal; 4 rotated, of which the two with images differ
    assert len(set(asked)) == 4 + 1 + 1 + 0 + 4 and stored(tmp_path / "run") == len(set(asked))
    assert len(sampler.calls) <= 4  # a block for each number of images and length, not one for each control
    calls = len(sampler.calls)
    execute(config, tmp_path / "run")
    assert len(sampler.calls) == calls
    table = (tmp_path / "run" / "export" / "tables" / "mmedexpert-mini-controls.md").read_text()
    assert "| near-identical pairs | 2 | 50.0 | 0.0 |" in table and "are told apart" in table, table


def test_an_unknown_control_is_refused_before_any_work(folder, tmp_path):
    with pytest.raises(
        ConfigError, match="no control 'blind'; choose among blank, other_image, question_only, shuffle, pairs"
    ):
        execute(settings(folder, controls=("blind",)), tmp_path)
