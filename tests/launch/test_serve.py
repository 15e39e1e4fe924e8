"""The serve job as a user starts it: the product's evaluation asks it, adapters answer by name as they do alone."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import httpx2 as httpx
import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from mmedexpert_jax import lora as lora_module
from mmedexpert_jax import models
from mmedexpert_jax.launch import load_config, serve
from mmedexpert_jax.launch.cli import main
from mmedexpert_jax.models import load_processor
from mmedexpert_jax.processing.images import spread

NAMES = ("first", "second")
TOP = ("benchmarks", "duplicates", "candidates", "stages")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two adapters of the embedded model, far enough from it to answer otherwise, in first/ and second/."""
    path = tmp_path_factory.mktemp("serve")
    params = models.load_policy("mini")[1]
    for seed, name in enumerate(NAMES):
        start = lora_module.init(jax.random.key(seed), params, rank=2, alpha=4.0, targets="text")
        leaves, tree = jax.tree.flatten(start)
        keys = jax.random.split(jax.random.key(seed + 10), len(leaves))
        moved = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
        lora_module.save_peft(path / name, jax.tree.unflatten(tree, moved), base="mini")
    return path


@pytest.fixture(scope="module")
def served(folder):
    """The address of a server of the base and of both adapters, which ends with status 0 or 130 when interrupted."""
    fields = {
        "port": 0,
        "name": "base",
        "adapters": ",".join(f"{name}={folder / name}" for name in NAMES),
        "queue": 4,
        "rows": 4,
        "max_prompt_length": 512,
        "max_new_tokens": 32,
    }
    command = [sys.executable, "-m", "mmedexpert_jax.launch", "--config=configs/serve.py"]
    command += [f"--config.{key}={value}" for key, value in fields.items()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    line = process.stdout.readline()
    address = re.search(r"http://\S+/v1", line)
    assert address, line + process.stderr.read()
    socket.create_connection(("127.0.0.1", int(address[0].split(":")[2].removesuffix("/v1"))), 60).close()  # at once
    yield address[0]
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (0, 130) and "Traceback" not in errors


def test_an_evaluation_asks_adapters_by_name_and_gets_what_each_says_alone(folder, served, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    compared = [f"{name}={folder / name}" for name in NAMES] + [f"far-{name}=endpoint:{name}" for name in NAMES]
    arguments = ["--config.model.path=base=mini", f"--config.compare={','.join(compared)}"]
    arguments += [f"--config.endpoint.url={served}", "--config.endpoint.concurrency=4", "--config.limit=4"]
    assert main(["--config=configs/evaluate.py", *arguments, "--config.max_new_tokens=32"]) == 0
    rows = {path.stem: _responses(path) for path in Path("runs/evaluate-mini/export").rglob("*.jsonl")}
    said = {name: rows[name] for name in ("base", *NAMES)}
    assert len(said["base"]) == 4 and len({tuple(answers.items()) for answers in said.values()}) == 3
    for name in NAMES:
        assert rows[f"far-{name}"] == said[name]


def test_the_factory_asks_its_teacher_there(served, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = {"A": "Pneumonia", "B": "Gout"}
    question = "A woman of {} has a cough, a fever and an infiltrate. Which of these is the most likely diagnosis?"
    rows = [{"id": str(age), "question": question.format(age), "options": options, "answer": "A"} for age in (20, 50)]
    Path("raw.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {"data.path": "raw.jsonl", "benchmarks": "", "duplicates": 1, "candidates": 1, "stages": "collect,trace"}
    fields |= {"url": served, "model": "first", "key_env": "", "prompt": "short", "max_tokens": 32}
    arguments = [f"--config.{key if '.' in key or key in TOP else f'teacher.{key}'}={v}" for key, v in fields.items()]
    assert main(["--config=configs/dataset.py:endpoint", *arguments]) == 0, capsys.readouterr().err
    with contextlib.closing(sqlite3.connect("runs/dataset-endpoint/factory.sqlite")) as store:
        traces = store.execute("SELECT teacher, response FROM traces").fetchall()
        attempts = store.execute("SELECT outcome, completion_tokens FROM attempts").fetchall()
    assert [teacher for teacher, _ in traces] == ["first"] * 2 and all(response for _, response in traces)
    assert attempts == [("answered", 32)] * 2


def test_an_adapter_that_asks_otherwise_than_the_base_is_served_alone(folder, tmp_path, capsys):
    """A copy of the base's template, however written, is none of its own."""
    own, template = tmp_path / "own", load_processor("mini").tokenizer.chat_template
    shutil.copytree(folder / "first", own)
    served = ["--config=configs/serve.py", f"--config.adapters=x={own}", "--config.plan=True"]
    for text, code in (("{# saved by its trainer #}" + template, 0), ("{{ messages[-1].content }}", 2)):
        (own / "chat_template.jinja").write_text(text)
        assert main(served) == code
    assert "has a chat template, tokenizer or image settings of its own" in capsys.readouterr().err
    assert main([*served[::2], f"--config.model.path={own}"]) == 0


def test_a_plan_refuses_the_models_and_adapters_that_cannot_be_loaded(folder, tmp_path, capsys):
    plain, whole = tmp_path / "plain", tmp_path / "whole"
    for copy in (plain, whole):
        shutil.copytree(folder / "first", copy)
    settings = json.loads((plain / "adapter_config.json").read_text())
    tensors = load_file(plain / "adapter_model.safetensors")
    name = "visual.merger.mlp.0.weight"
    weight = models.load_policy("mini")[1]["visual"]["merger"]["mlp"]["0"]["weight"]

    def plan(job, *arguments):
        return main([f"--config=configs/{job}.py", "--config.plan=True", *arguments])

    save_file(tensors | {f"base_model.model.{name}": np.asarray(weight)}, whole / "adapter_model.safetensors")
    assert plan("serve", f"--config.adapters=x={plain},y={whole}") == 0, "what it holds whole is the base's own"
    save_file(tensors | {f"base_model.model.{name}": np.asarray(weight) + 1}, whole / "adapter_model.safetensors")
    assert plan("serve", f"--config.adapters=x={whole}") == 3
    assert f"holds {name} whole" in (said := capsys.readouterr().err) and "config.model.path" in said
    assert plan("serve", f"--config.model.path={whole}") == 0
    (plain / "adapter_config.json").write_text(json.dumps(settings | {"use_dora": True}))
    for job, field in (("serve", "adapters=x="), ("serve", "model.path="), ("ask", "model.path=")):
        assert plan(job, f"--config.{field}{plain}", *["--config.question=Why?"] * (job == "ask")) == 3
        assert "use_dora=True is not supported" in capsys.readouterr().err


def test_what_is_to_be_seen_of_a_picture_may_be_asked_about(tmp_path, monkeypatch):
    """The values of the window and the frames chosen, by Pillow."""
    grey = np.linspace(0, 4095, 56 * 56).astype(np.uint16).reshape(56, 56)
    Image.fromarray(grey).save(tmp_path / "scan.png")
    frames = [Image.new("RGB", (56, 56), (shade, 0, 0)) for shade in (0, 100, 200)]
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:], lossless=True)

    def seen(file, **fields):
        asked = {"question": "Why?", "images": (str(tmp_path / file),)} | fields
        (message,) = serve._asked(load_config("configs/ask.py", asked))
        return [np.asarray(part["image"])[..., 0] for part in spread(message["content"])[:-1]]

    (whole,), (half,) = (seen("scan.png", window=window) for window in ("range", "2047.5,2049"))
    assert np.abs(whole - grey / 4095 * 255).max() <= 0.5
    assert np.abs(half - np.clip((grey - 1023.5) / 2048, 0, 1) * 255).max() <= 1
    assert [int(one[0, 0]) for one in seen("moving.webp", slices=3)] == [0, 100, 200]


def test_a_base_is_the_same_however_its_path_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(models.locate.MINI, "m/base")
    deltas = lora_module.init(jax.random.key(0), models.load_policy("mini")[1], rank=1, alpha=1.0, targets="text")
    lora_module.save_peft(tmp_path / "m" / "adapter", deltas, base="m/base")
    Path("link").symlink_to("m/base")
    for path in (tmp_path / "m" / "base", "./m/../m/base", "link"):
        arguments = [f"--config.model.path={path}", "--config.adapters=x=m/adapter", "--config.plan=True"]
        assert main(["--config=configs/serve.py", *arguments]) == 0, capsys.readouterr().err


def _responses(path):
    return {row["id"]: row["response"] for row in map(json.loads, path.read_text().splitlines()) if "id" in row}


def test_names_limits_and_those_who_leave(served):
    names = [one["id"] for one in httpx.get(f"{served}/models").json()["data"]]
    assert names == ["base", *NAMES]
    body = {"messages": [{"role": "user", "content": "Is a score of 7 high?"}], "max_tokens": 32}
    assert httpx.post(f"{served}/chat/completions", json=body | {"n": 5}, timeout=60).status_code == 400
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{served}/chat/completions", json=body | {"n": 4}, timeout=0.05)
    answer = httpx.post(f"{served}/chat/completions", json=body, timeout=120).json()  # the rows are free again
    assert answer["choices"][0]["message"]["content"]
