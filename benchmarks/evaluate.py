"""Items per second of an evaluation, against MedEvalKit's way: one item at a time through transformers' `generate`.

    python benchmarks/evaluate.py   # the embedded model, 512 items of MMedExpert-mini's test split
    python benchmarks/evaluate.py --model PATH --items 32 --tokens 1024 --batch 16

Both sides have the same weights, items, prompts and limits, decode greedily, and take turns, so that other work on the
machine meets both. Ours stores every answer on disk as it comes, and is timed cold (compilation included) and warm
(other items of the same benchmark); the peer has nothing to compile and is measured on `--peer` of the items. Prints a
table and one JSON line, with the share of items that both sides give the same answer to.
"""

import argparse
import dataclasses
import io
import json
import platform
import tempfile
import time
from typing import Any

import jax
import torch
import transformers
from PIL import Image
from transformers import Qwen2VLForConditionalGeneration, Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor
from transformers.processing_utils import ProcessorMixin

from mmedexpert_jax.data import benchmarks
from mmedexpert_jax.medeval.ask import Asker, questions
from mmedexpert_jax.medeval.backends.jax_engine import JaxBackend
from mmedexpert_jax.medeval.prompt_styles import Question, opened
from mmedexpert_jax.medeval.scoring import score
from mmedexpert_jax.medeval.store import AnswerLog
from mmedexpert_jax.models import load_processor
from mmedexpert_jax.models.locate import trace
from mmedexpert_jax.rollout import Settings

COLD = "ours, compilation included"
WARM = "ours, other items of the same benchmark"
PEER = "transformers, one item at a time"


@dataclasses.dataclass(frozen=True)
class Run:
    """Answers by number of their question, wall and processor seconds."""

    texts: dict[int, str]
    seconds: float
    cpu: float

    def row(self) -> dict[str, float]:
        """Its figures, with items a second of either clock."""
        items = len(self.texts)
        return {
            "items": items,
            "wall_s": self.seconds,
            "cpu_s": self.cpu,
            "items_per_second": items / self.seconds,
            "items_per_cpu_second": items / self.cpu,
        }


class Processor(Qwen2VLProcessor):
    """transformers' own, without the video part, which torchvision would have to serve."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None):
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


class Peer:
    """transformers, an item at a time."""

    def __init__(self, path: str, tokens: int):
        directory, adapters = trace(path)
        if adapters:
            raise SystemExit("give a whole model: the peer folds no adapters")
        ours = load_processor(path)
        self.tokens = tokens
        self.model = Qwen2VLForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval()
        images = Qwen2VLImageProcessorPil(**ours.image_config.to_hf())
        self.processor = Processor(images, ours.tokenizer, ours.tokenizer.chat_template)

    @torch.inference_mode()
    def answer(self, asked: list[Question]) -> Run:
        """Every question, one after the other."""
        wall, cpu = time.perf_counter(), time.process_time()
        texts = {}
        for number, question in enumerate(asked):
            messages = opened(question.messages)
            images = [part["image"] for message in messages for part in message["content"] if part["type"] == "image"]
            text = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            pictures = [Image.open(io.BytesIO(image)).convert("RGB") for image in images] or None
            inputs = self.processor(text=[text], images=pictures, return_tensors="pt")
            tokens = self.model.generate(**inputs, max_new_tokens=self.tokens, do_sample=False)
            reply = tokens[0, inputs["input_ids"].shape[1] :]
            texts[number] = self.processor.decode(reply, skip_special_tokens=True)
        return Run(texts, time.perf_counter() - wall, time.process_time() - cpu)


def ours(backend: JaxBackend, asked: list[Question]) -> Run:
    """Every question through the engine, answers stored as they come."""
    wall, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder, AnswerLog(folder) as answers:
        found = Asker(backend, answers, {}).ask(asked)
    texts = {number: answered.replies[0].text for number, answered in found.items()}
    return Run(texts, time.perf_counter() - wall, time.process_time() - cpu)


def agreement(asked: list[Question], first: Run, second: Run) -> dict[str, Any]:
    """Share of items with the same text and with the same option, and the accuracies of both on these items."""
    read = [[score(asked[i].case, run.texts[i]) for i in second.texts] for run in (first, second)]
    same = [a.answer == b.answer for a, b in zip(*read, strict=True)]
    return {
        "same_text": sum(first.texts[i].strip() == second.texts[i].strip() for i in second.texts) / len(second.texts),
        "same_option": sum(same) / len(same),
        "accuracy": [sum(found.right for found in side) / len(side) for side in read],
    }


def main() -> None:
    """Measures, prints the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mini", help="of the Qwen2-VL family: mini, a directory or a hub id")
    parser.add_argument("--items", type=int, default=512)
    parser.add_argument("--peer", type=int, default=48, help="items that the peer answers, a sample of them")
    parser.add_argument("--tokens", type=int, default=96, help="limit of an answer")
    parser.add_argument("--batch", type=int, default=64)
    arguments = parser.parse_args()

    def load(split: str, limit: int) -> list[Question]:
        return questions(benchmarks.load("mmedexpert_mini", split=split, limit=limit).items, "think_answer")

    asked, few, others = load("test", arguments.items), load("test", arguments.peer), load("dev", arguments.items)
    settings = Settings(max_new_tokens=arguments.tokens, batch_size=arguments.batch)
    backend = JaxBackend(arguments.model, "float32", settings)
    peer = Peer(arguments.model, arguments.tokens)
    cold = ours(backend, asked)
    before = peer.answer(few[: len(few) // 2])
    warm = ours(backend, others)
    after = peer.answer(few[len(few) // 2 :])
    shifted = {number + len(before.texts): text for number, text in after.texts.items()}
    one = Run(before.texts | shifted, before.seconds + after.seconds, before.cpu + after.cpu)
    runs = {COLD: cold, WARM: warm, PEER: one}
    rows = {name: run.row() for name, run in runs.items()}
    print("| way | items | wall s | CPU s | items/s | items/CPU s |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{value:.4g}" for value in row.values()) + " |")
    ids = {question.case.id: number for number, question in enumerate(asked)}
    places = [ids[question.case.id] for question in few]
    same = Run({i: cold.texts[place] for i, place in enumerate(places)}, cold.seconds, cold.cpu)
    rates = {name: row["items_per_second"] for name, row in rows.items()}
    result = {
        "benchmark": "evaluate",
        "model": arguments.model,
        "rows": rows,
        "speedup_cold": rates[COLD] / rates[PEER],
        "speedup_warm": rates[WARM] / rates[PEER],
        **agreement(few, same, one),
        "machine": platform.machine(),
        "devices": str(jax.devices()),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    print(f"cold {result['speedup_cold']:.1f}x, warm {result['speedup_warm']:.1f}x the rate of one item at a time")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
