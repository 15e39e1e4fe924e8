"""Stored answers: keys that know what an answer depends on, and files that survive a kill."""

import json

import pytest

from mmedexpert_jax.data.benchmarks import ImageRef
from mmedexpert_jax.errors import DataError, ResourceError
from mmedexpert_jax.medeval.store import AnswerLog, answer_key
from mmedexpert_jax.rollout import Reply

REPLY = Reply("<answer>B</answer> é\u2028", 7, False)


def ask(image=b"picture", text="Which?"):
    parts = [{"type": "image", "image": ImageRef("a.png", lambda: image)}, {"type": "text", "text": text}]
    return [{"role": "user", "content": parts}]


def test_a_key_changes_with_prompt_image_model_and_settings():
    base = (ask(), {"weights": "w"}, {"temperature": 0.0})
    others = [
        (ask(text="What?"), *base[1:]),
        (ask(image=b"another"), *base[1:]),
        (base[0], {"weights": "v"}, base[2]),
        (*base[:2], {"temperature": 1.0}),
    ]
    keys = [answer_key(*one) for one in (base, *others)]
    assert len(set(keys)) == 5 and answer_key(*base) == keys[0]
    renamed = [
        {
            "role": "user",
            "content": [{"type": "image", "image": ImageRef("b.png", lambda: b"picture")}, *ask()[0]["content"][1:]],
        }
    ]
    assert answer_key(renamed, *base[1:]) == keys[0]  # the contents count, not the place


def test_an_image_that_cannot_be_read_has_no_key():
    def read():
        raise OSError("gone")

    with pytest.raises(DataError, match=r"a\.png: the image cannot be read \(gone\)"):
        answer_key([{"role": "user", "content": [{"type": "image", "image": ImageRef("a.png", read)}]}], {}, {})


def test_answers_survive_and_a_corrupt_last_line_costs_itself_only(tmp_path):
    with AnswerLog(tmp_path) as answers:
        for key in ("k1", "k2"):
            answers.add("item", key, [REPLY])
    path = tmp_path / "00000.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    with AnswerLog(tmp_path) as answers:
        assert "k1" in answers and "k2" not in answers and answers.broken == 1
        assert answers.get("k1") == [REPLY]
        answers.add("item", "k3", [REPLY, REPLY])
    assert [json.loads(line)["key"] for line in path.read_bytes().splitlines()] == ["k1", "k3"]
    with AnswerLog(tmp_path) as answers:
        assert len(answers) == 2 and answers.broken == 0 and len(answers.get("k3")) == 2


def test_processes_write_files_of_their_own_and_read_all(tmp_path):
    with AnswerLog(tmp_path, 1) as answers:
        answers.add("item", "k1", [REPLY])
        (tmp_path / "00002.jsonl").write_bytes(b'{"key": "k2", "repl')  # another process is writing
        with AnswerLog(tmp_path, 0) as other:
            assert "k1" in other and other.broken == 1
        with pytest.raises(ResourceError, match=r"00001\.jsonl is being written .* config\.process"):
            AnswerLog(tmp_path, 1)
    assert (tmp_path / "00002.jsonl").read_bytes() == b'{"key": "k2", "repl'


def test_a_broken_line_in_the_middle_is_counted(tmp_path):
    (tmp_path / "00000.jsonl").write_text('{"key": "k1"}\nnoise\n{"key": "k2", "replies": []}\n')
    with AnswerLog(tmp_path) as answers:
        assert answers.broken == 2 and "k2" in answers
