"""The sweep: stages shared by content, what a changed field reruns, kills, and its table, figures and sentences."""

import csv
import json
import shutil
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmedexpert_jax.config.validate import validate
from mmedexpert_jax.data import load_cases
from mmedexpert_jax.errors import ConfigError, Interrupted
from mmedexpert_jax.launch import ablation, ablation_result, load_config, stage_cache, table3
from mmedexpert_jax.launch.cli import main
from mmedexpert_jax.launch.stage_cache import Stages
from mmedexpert_jax.report import text_tables
from mmedexpert_jax.runtime import files, stage_costs
from mmedexpert_jax.runtime.signals import SIGNALS

ROOT = Path(__file__).parents[2]
PAPER = [
    *("Base", "AM", "CAH", "BS", "CSI", "Mixed SFT", "GRPO", "GBA", "Mixed SFT + GBA", "DSA + GBA", "Ours"),
]  # in Table 3's order
SHORT = "Base,AM,GRPO,GBA,DSA + GBA,Ours,Naive,TIES once"


class Trainer:
    """Writes an adapter over `model.path`, drawn by what it trains; raises `error` in the run after `after`."""

    def __init__(self, write_adapter):
        self.write_adapter = write_adapter
        self.runs: list[str] = []
        self.error: Exception | None = None
        self.after = 0

    def train(self, config, run, evaluate=None):
        name = config.specialty if config.job == "dsa" else config.objective
        self.runs.append(f"{config.job} {name} {config.seed}")
        if self.error and len(self.runs) > self.after:
            raise self.error
        self.write_adapter(config, run, seed=len(self.runs))


@pytest.fixture
def sweep(tiny_checkpoint, tiny_cases, write_adapter, stand_in, tmp_path, monkeypatch):
    """Arguments of a tiny sweep, and the stand-in of its trainers."""
    monkeypatch.chdir(tmp_path)
    trainer = Trainer(write_adapter)
    stand_in(trainer.train)
    fields = {
        "workdir": "run", "model.path": tiny_checkpoint, "data.path": tiny_cases, "rows": SHORT, "seeds": "0",
        "diversity.questions": 2, "diversity.num_samples": 2, "questions": 4, "evaluate.max_new_tokens": 4,
        "evaluate.batch_size": 4,
    }  # fmt: skip
    return ["--config=configs/ablation.py", *(f"--config.{key}={value}" for key, value in fields.items())], trainer


def stages(tmp: str = "s", **overrides):
    return Stages(load_config("configs/ablation.py", overrides), tmp)


def test_the_rows_are_those_of_the_paper():
    rows = {row.name: row for row in table3.rows()}
    assert list(rows)[: len(PAPER)] == PAPER
    assert [rows[name].published for name in PAPER] == [
        *(20.90, 22.30, 22.80, 19.90, 21.30, 22.05, 21.35, 21.90, 22.05, 22.35, 23.35)
    ]
    assert rows["Ours"].ticks == ("Disentangled", "GBA", "TIES")
    assert rows["DSA + GBA"].ticks == ("Disentangled", "GBA", "Naive")
    assert not [name for name in rows if "," in name], "rows are chosen by names between commas"
    for claim in table3.CLAIMS:
        assert {*claim.better, *claim.worse} <= set(rows)
    assert {name for names in table3.PANELS.values() for name in names} <= set(rows)


def test_a_seed_of_the_whole_table_has_each_stage_once():
    config = load_config("configs/ablation.py")
    tasks = list(stages().order(table3.wanted(config, ablation.rows(config)), 0))
    counts = Counter(task.stage.job for task in tasks)
    # four experts and the mixed one; GRPO, GBA, mixed + GBA, GBA without structure, GBA from four merges and GRPO from
    # one; each merge of four and of five, and rl_origin="start" beside; two evaluations of every row
    assert counts == {"dsa": 5, "gba": 9, "merge": 9, "evaluate": 2 * len(table3.rows())}
    assert {(task.config.method, task.config.scale) for task in tasks if task.stage.job == "merge"} == {
        ("ties", 1.0), ("average", 1.0), ("slerp", 1.0), ("task_arithmetic", 0.4),
    }  # fmt: skip
    assert len({task.folder for task in tasks}) == len(tasks)
    seen = set()
    for task in tasks:
        needed = [
            task.config.model.path.removeprefix("model="),
            *(e.partition("=")[2] for e in task.config.get("experts", ())),
        ]
        assert {path for path in needed if path != "mini"} <= seen, "inputs come first"
        seen.add(task.config.workdir)
    grpo = next(task.config for task in tasks if task.config.get("objective") == "grpo")
    assert (grpo.guided, grpo.rewards.structure, grpo.rewards.format) == (False, 0.0, 0.2)
    last = load_config("configs/ablation.py", {"rivals": "last"})
    tasks = stages(rivals="last").order(table3.wanted(last, ablation.rows(last)), 0)
    assert Counter(task.stage.job for task in tasks)["gba"] == 7, "the policies of two methods are not needed"


def test_a_changed_field_leads_elsewhere_only_for_what_depends_on_it():
    ours = table3.twice("ties")

    def folders(**overrides):
        return {task.folder.name for task in stages(**overrides).order([ours], 0)}

    before = folders()
    assert len(before) == 7
    for field, changed in {"dsa.lr": 7, "gba.lr": 2, "merge.density": 3, "seed": 0, "gba.log": 0}.items():
        value = {"seed": 3, "gba.log": None}.get(field, 0.5)
        overrides = {"gba.samples_every": 3} if field == "gba.log" else {field: value}
        assert len(folders(**overrides) - before) == changed, field
    config = load_config("configs/ablation.py")
    answers = table3.Stage("evaluate", {"limit": 4}, None)
    assert stages().task(answers, 0).key == stages().task(answers, 1).key, "the base is answered for once"
    assert stages().task(ours, 0).key != stages().task(ours, 1).key
    assert table3.greedy(config, None).fields != table3.sampled(config, None).fields


def test_a_sweep_through_interruptions_and_a_changed_field(sweep, capsys):
    arguments, trainer = sweep
    trainer.error, trainer.after = Interrupted("step 3 is saved", 15), 3
    assert main(arguments) == 143
    trainer.error = None
    assert main([*arguments, "--config.plan=True"]) == 0
    assert "  dsa      4 stages, 1 done" in capsys.readouterr().out
    assert main(arguments) == 0
    assert "Experts disagree in sign on" in capsys.readouterr().out, "each merge says who won the elections"
    ran = Counter(trainer.runs)
    assert ran.pop("dsa CAH 0") == 2, "the one that was cut off goes on"
    assert ran == {"gba gba 0": 3, "gba grpo 0": 1} | {f"dsa {name} 0": 1 for name in ("AM", "BS", "CSI")}

    count = len(trainer.runs)
    assert main(arguments) == 0 and len(trainer.runs) == count, "nothing is left to do"
    assert main([*arguments, "--config.workdir=other", "--config.stages=run/stages"]) == 0
    assert len(trainer.runs) == count, "another sweep finds the stages"
    assert main([*arguments, "--config.gba.lr=0.5"]) == 0
    assert Counter(trainer.runs[count:]) == {"gba gba 0": 3, "gba grpo 0": 1}, "experts are not trained again"

    result = json.loads(Path("run/export/ablation.json").read_text())
    assert [row["name"] for row in result["rows"]] == SHORT.split(",")
    assert result["items"] == {"greedy": 4, "sampled": 2}
    table = Path("run/table.md").read_text()
    assert all(text in table for text in ("| method |", "distinct answers", "pass@2", "| 23.35 |", "## Costs"))
    assert Path("run/plots/figure3b.png").exists() is False, "a panel needs its rows"
    with Path("run/export/tables/table3.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(SHORT.split(",")) * len(ablation_result.MEASURES)
    assert "GBA outperforms GRPO" in Path("run/report.html").read_text()


def test_two_sweeps_take_turns(sweep, monkeypatch, capsys):
    arguments, trainer = [*sweep[0], "--config.rows=Base,AM"], sweep[1]
    assert main([*arguments, "--config.stages=made"]) == 0
    first = min(Path("made").glob("evaluate-*"), key=lambda folder: (folder / "cmd.txt").stat().st_ctime)
    other = files.lock(Path("shared", ".locks", first.name))

    def interrupt(seconds: float) -> None:
        SIGNALS.caught = signal.SIGTERM

    monkeypatch.setattr(stage_cache.time, "sleep", interrupt)
    assert main([*arguments, "--config.stages=shared"]) == 143
    assert f"waits for {first.name}, which another sweep is making" in capsys.readouterr().out

    def finish(seconds: float) -> None:
        shutil.copytree("made", "shared", dirs_exist_ok=True, ignore=shutil.ignore_patterns(".locks"))
        other.close()

    monkeypatch.setattr(stage_cache.time, "sleep", finish)
    assert main([*arguments, "--config.stages=shared"]) == 0
    out = capsys.readouterr().out
    assert f"waits for {first.name}" in out and "[1/" not in out, "it is not made again"
    assert trainer.runs == ["dsa AM 0"]


def test_other_data_or_another_model_leads_to_other_stages():
    ours = table3.twice("ties")

    def folders(**overrides):
        return {task.folder.name for task in stages(**overrides).order([ours], 0)}

    before = folders()
    for field in ("data.path", "model.path", "model.base"):
        assert not folders(**{field: "elsewhere"}) & before, field
    for reading in ({"model.quantize": "nf4"}, {"model.max_pixels": 3136}):
        assert not folders(**reading) & before, reading
    for field in ("gba.mesh.data", "gba.micro_batch"):
        assert folders(**{field: 2}) == before, field


def test_unknown_rows_are_refused(sweep):
    assert main([*sweep[0], "--config.rows=Theirs"]) == 2
    with pytest.raises(ConfigError, match="no row 'Theirs'; choose among Base"):
        ablation.rows(load_config("configs/ablation.py", {"rows": ("Theirs",)}))


def measured(name: str, accuracy: list[list[float]], distinct: list[list[float]] | None = None):
    row = next((row for row in table3.rows() if row.name == name), None)
    values = {key: np.array(accuracy, float) for key in ablation_result.MEASURES}
    return ablation_result.Measured(row, values | {"distinct": np.array(distinct or accuracy, float)})


def test_the_table_by_hand():
    base = measured("Base", [[1, 0, 0, 0], [1, 0, 0, 0]])
    ours = measured("Ours", [[1, 1, 0, 0], [1, 1, 1, 0]])
    found = {"Base": base, "Ours": ours}
    rows = [ablation_result._figures(row, found) for row in found.values()]
    ablation_result._adjust(rows)
    assert rows[0]["accuracy"]["by_seed"] == [0.25, 0.25] and rows[0]["gain"] is None
    gain = rows[1]["gain"]
    assert (rows[1]["accuracy"]["mean"], gain["mean"]) == (0.625, 0.375)
    assert gain["by_seed"] == [0.25, 0.5]
    half = 12.706204736 * np.std([0.25, 0.5], ddof=1) / np.sqrt(2)  # t of one degree of freedom
    assert (gain["seeds_low"], gain["seeds_high"]) == pytest.approx((0.375 - half, 0.375 + half))
    # of the items' mean differences (0, 1, 0.5, 0) the signs of two count: 1.5 in half of the four cases
    assert gain["p"] == pytest.approx(0.5, abs=0.02) and gain["holm"] == gain["p"]
    result = {"rows": rows, "samples": 8, "seeds": [0, 1]}
    first, second = ablation_result.table_rows(result)
    assert str(ablation_result.diversity_rows(result)[1]["pass@8"]).startswith("62.5 ± 158.8")
    assert first["published gain"] == "–" and second["published gain"] == "+2.45"
    assert str(second["accuracy"]).startswith("62.5 ± 158.8 [") and second["TIES"] == "✓" and second["Naive"] == "–"
    assert "| Ours |" in text_tables.markdown([first, second])
    assert len(ablation_result.spread(result)) == 2 * len(ablation_result.MEASURES)


@pytest.mark.parametrize(
    ("better", "worse", "verdict", "said"),
    [(1, 0, "held", "held here"), (0, 1, "reversed", "the opposite did"), (0, 0, "not settled", "is not settled")],
)
def test_a_claim_both_ways(better, worse, verdict, said):
    claim = table3.Claim("GBA outperforms GRPO", ("GBA",), ("GRPO",))
    found = {"GBA": measured("GBA", [[better] * 8] * 2), "GRPO": measured("GRPO", [[worse] * 8] * 2)}
    judged = ablation_result._verdict(claim, found)
    assert judged["verdict"] == verdict and said in judged["sentence"]
    assert f"{100 * (better - worse):+.2f} points" in judged["sentence"] and "2 seeds" in judged["sentence"]


def test_a_claim_needs_the_seeds_to_agree():
    figure = {"low": 0.1, "high": 0.3, "seeds_low": -0.1, "seeds_high": 0.5}
    assert ablation_result.judge(figure) == "not settled"
    assert ablation_result.judge(figure | {"seeds_low": None, "seeds_high": None}) == "held"


def test_the_panels_are_drawn(tmp_path):
    found = {row.name: measured(row.name, [[1, 0, 0, 1], [1, 1, 0, 0]]) for row in table3.rows()}
    rows = [ablation_result._figures(row, found) for row in found.values()]
    panels = ablation_result.panels({"rows": rows})
    assert list(panels) == ["figure3a.png", "figure3b.png", "figure3c.png"]
    for name, title in panels.items():
        assert ablation_result.draw({"rows": rows}, title, tmp_path / name).read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def finished(tmp_path):
    """`finished(name, config, seconds, steps, **cost)`: the folder of a run that is done."""

    def make(name: str, config: dict, seconds: float, steps: int = 0, **cost) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        work = {"device_seconds": seconds, "tokens": 10, "flops": 4e9, "share_of_peak": 0.5, "peak_memory_bytes": 2e9}
        cost = {"wall_seconds": seconds, "devices": 1} | ({} if config["job"] == "merge" else work) | cost
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "STATUS.json").write_text(json.dumps({"state": "done", "summary": {"steps": steps}, "cost": cost}))
        return folder

    return make


DSA = {"job": "dsa", "specialty": "AM", "batch_size": 4, "accumulation": 8, "epochs": 2}


def test_the_costs_beside_appendix_e(finished, tmp_path):
    folders = [finished("a", DSA, 60.0, 20), finished("b", DSA, 84.0, 40), finished("m", {"job": "merge"}, 3.0)]
    first, second = stage_costs.table([*folders, tmp_path / "missing"])
    # 72 s on average for 30 steps of 32 cases in 2 epochs, that is 480 samples
    assert (first["stage"], first["runs"], first["wall seconds"]) == ("DSA, an expert", 2, "72")
    assert first["here"] == f"{72 / 3600 / 480 * 1000:.2f} h for 1,000 samples" and first["share of peak"] == "50.0%"
    assert second["here"] == "0.05 min a merge" and second["published (A100)"] == "5 min a merge"
    assert second["operations"] == second["peak memory"] == "", "a merge runs on the host"
    assert not any("$" in str(row.values()) for row in (first, second)) and "$" not in stage_costs.note()


def test_money_is_of_the_price_that_is_asked_for(finished):
    """Stages that ran at no price, or at another, on four devices: 0.1 h x 4 devices x $2.5 for 500 samples."""
    gba = {"job": "gba", "prompts_per_step": 50, "price": 9.0}
    folder = finished("g", gba, 360.0, 10, devices=4, dollars=99.0)
    (row,) = stage_costs.table([folder], 2.5)
    assert row["here"] == "0.2 h for 1,000 samples, $2.00" and row["dollars a run"] == "1.0000"
    assert row["published (A100)"] == "13 h for 1,000 samples, $32.50"
    assert "$2.5 for an hour of one device" in stage_costs.note(2.5)


def test_unlike_runs_of_a_job_have_rows_of_their_own(finished):
    evaluate = {"job": "evaluate"}
    folders = [finished(name, DSA | {"specialty": name}, seconds, 10) for name, seconds in (("AM", 10), ("mixed", 40))]
    folders += [finished("g", evaluate | {"num_samples": 1}, 1.0), finished("s", evaluate | {"num_samples": 8}, 9.0)]
    found = [(row["stage"], row["wall seconds"]) for row in stage_costs.table(folders)]
    assert found == [("DSA, an expert", "10"), ("DSA, mixed", "40"), ("evaluation", "1"), ("evaluation, sampled", "9")]


def test_a_benchmark_is_trained_on(tmp_path):
    row = {"question_id": "q", "question": "Which organ?", "option_A": "liver", "option_B": "lung", "gt_answer": "lung"}
    folder = tmp_path / "QA_information" / "Open-access"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    row |= {"image_path": "a.png", "modality_type": "CT", "question_type": "Organ", "dataset": "set"}
    rows = [row | {"question_id": f"q{n}"} for n in range(3)]
    (folder / "set.json").write_text(json.dumps(rows))
    path = f"benchmark:omnimedvqa={tmp_path}"
    case = load_cases(path, "train", limit=1)[0]
    assert (case.options, case.answer, case.modality, case.specialty) == (("liver", "lung"), "B", "image", "")
    config = load_config("configs/ablation.py:omnimedvqa", {"data.path": path, "model.path": "mini"})
    validate(config)
    found = ablation.rows(config)
    assert [row.published for row in found] == [None, 77.93]
    jobs = [task.stage.job for task in Stages(config, tmp_path).order(table3.wanted(config, found), 0)]
    assert Counter(jobs) == {"gba": 1, "evaluate": 4}


def test_fields_that_came_later_leave_the_stages_of_before_theirs():
    """Unset they are not hashed, so that no stage is made again; set they are."""
    hashed = stage_cache.hashed_fields(load_config("configs/gba.py"))
    later = {"filter.online", "terms", "rewards.judge.effort", "rewards.judge.max_tokens"}
    assert hashed["zero_variance"] == "keep" and not later & {*hashed}
    changed = load_config(
        "configs/gba.py", {"filter.online": True, "terms": ("own.py:f=0.1",), "zero_variance": "drop"}
    )
    found = stage_cache.hashed_fields(changed)
    assert found["filter.online"] is True and found["terms"] == ["own.py:f=0.1"]
    hashed = stage_cache.hashed_fields(load_config("configs/evaluate.py"))
    assert hashed["judge.what"] and not {"judge.effort", "judge.max_tokens"} & {*hashed}
