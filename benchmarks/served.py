"""Exports of every family in other programs: greedy answers to questions with images, token by token beside ours.

    python benchmarks/served.py --python /path/to/venv/bin/python --program transformers  # 4.57 or 5
    python benchmarks/served.py --python ~/vllm/bin/python --program vllm  # made by benchmarks/vllm_peer.py install

Writes a small random model of each family by `save_pretrained`, answers with our engine, and hands the folder to a
Python that has the other program. vLLM gets text ids and pictures, and so cuts the pictures itself; transformers gets
the ids and pixels of our processor, since its own needs torchvision. Prints a line for each family, and for each that
the other program does not load the reason it gives.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import jax
import numpy as np
from families import FAMILIES, TINY, checkpoint, transformers_inputs
from PIL import Image

import mmedexpert_jax as mx
from mmedexpert_jax.processing.processor import Processor

STEPS = 16
# Run by the other Python with the folder, the questions and the program
CHILD = r"""
import inspect, json, os, sys
import numpy as np
folder, questions, program = sys.argv[1:]
asked = json.load(open(questions))
if program == "vllm":
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
    processors = sorted(os.sched_getaffinity(0))
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, processors))
    os.environ.setdefault("OMP_NUM_THREADS", str(len(processors)))  # else vLLM leaves torch one thread
    import vllm
    from PIL import Image
    how = {"enforce_eager": True, "max_model_len": 512, "limit_mm_per_prompt": {"image": 2, "video": 0}}
    llm = vllm.LLM(folder, dtype="float32", seed=0, **how)
    sampling = vllm.SamplingParams(temperature=0, max_tokens=asked["steps"], ignore_eos=True)
    said = []
    for one in asked["questions"]:
        prompt = {"prompt_token_ids": one["short"]}
        if one["images"]:
            prompt["multi_modal_data"] = {"image": [Image.open(image) for image in one["images"]]}
        out = llm.generate([prompt], sampling, use_tqdm=False)[0]
        said.append({"prompt": list(out.prompt_token_ids), "answer": list(out.outputs[0].token_ids)})
    version = vllm.__version__
else:
    import torch, transformers
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    said = []
    for one in asked["questions"]:
        takes = inspect.signature(model.forward).parameters  # 4.57 has no mm_token_type_ids
        inputs = {key: torch.tensor(values) for key, values in np.load(one["inputs"]).items() if key in takes}
        length = inputs["input_ids"].shape[1]
        out = model.generate(**inputs, max_new_tokens=asked["steps"], do_sample=False)
        said.append({"prompt": inputs["input_ids"][0].tolist(), "answer": out[0, length:].tolist()})
    version = transformers.__version__
print("ANSWERS" + json.dumps({"version": version, "said": said}))
"""


def questions(folder: Path, side: int) -> list[list[dict]]:
    """Conversations with no, one and two images, whose files stand in the folder.

    A side that the family need not change: programs that enlarge or shrink by another library differ in a few pixels.
    """
    pictures = []
    for number in range(2):
        values = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{number}.png")
        pictures.append({"type": "image", "image": str(folder / f"{number}.png")})
    said = {"type": "text", "text": "What is the score of a woman of 61?"}
    return [[{"role": "user", "content": [*pictures[:count], said]}] for count in range(3)]


def short(processor: Processor, conversation: list[dict]) -> list[int]:
    """Ids with one pad for each image, or with Gemma's mark of its place, which vLLM fills itself."""
    if processor.family == "gemma3":
        ids = processor.tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False)
        return list(ids)
    encoded = processor.encode(conversation)
    kept, seen = [], iter([len(patches) // processor.image_config.merged for patches, _ in encoded.images])
    place = 0
    while place < len(encoded.tokens):
        kept.append(int(encoded.tokens[place]))
        place += next(seen) if kept[-1] == processor.image_token_id else 1
    return kept


def compare(family: str, python: str, program: str, folder: Path) -> str:
    """One family in both programs: a line that says how many tokens of how many agree."""
    processor = checkpoint(TINY.parts(family), folder / family)
    model, params = mx.load_model(folder / family)
    # 224 is a multiple of 28 and of 32, Qwen's two units
    asked = questions(folder, model.config.vision.image_size or 224)
    ours, given = [], []
    for number, conversation in enumerate(asked):
        with jax.default_matmul_precision("highest"):
            out = mx.generate(
                model, params, processor([conversation]), key=jax.random.key(0), num_samples=1, max_new_tokens=STEPS,
                temperature=0.0, stop_ids=(),
            )  # fmt: skip
        ours.append(np.asarray(out.tokens)[0, 0].tolist())
        np.savez(folder / f"{number}.npz", **transformers_inputs(processor, conversation))
        images = [part["image"] for part in conversation[0]["content"] if part["type"] == "image"]
        given.append(
            {"short": short(processor, conversation), "images": images, "inputs": str(folder / f"{number}.npz")}
        )
    (folder / "questions.json").write_text(json.dumps({"steps": STEPS, "questions": given}))
    command = [python, "-c", CHILD, str(folder / family), str(folder / "questions.json"), program]
    done = subprocess.run(command, capture_output=True, text=True)
    line = next((line for line in done.stdout.splitlines() if line.startswith("ANSWERS")), "")
    if not line:
        return f"{family}: {program} gave no answers: {' '.join(done.stderr.split())[-400:]}"
    said = json.loads(line.removeprefix("ANSWERS"))
    prompts = sum(
        one["prompt"] == processor.encode(conversation).tokens.tolist()
        for one, conversation in zip(said["said"], asked, strict=True)
    )
    pairs = [(one["answer"], mine) for one, mine in zip(said["said"], ours, strict=True)]
    agreed = [sum(a == b for a, b in zip(*pair, strict=True)) for pair in pairs]
    return (
        f"{family}: {program} {said['version']}: of {STEPS} tokens each, with no, one and two images, "
        f"{', '.join(map(str, agreed))} agree; {prompts} of {len(asked)} prompts are the same ids"
    )


def main() -> None:
    """Reads the flags and compares the families in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="interpreter that has the other program")
    parser.add_argument("--program", choices=("transformers", "vllm"), required=True)
    parser.add_argument("--families", default=",".join(FAMILIES))
    flags = parser.parse_args()
    for family in flags.families.split(","):
        with tempfile.TemporaryDirectory() as folder:
            print(compare(family, flags.python, flags.program, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
