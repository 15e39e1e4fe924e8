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
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from PIL import Image
from tokenizers import AddedToken

import mmedexpert_jax as mx
from mmedexpert_jax.models import Model, ModelConfig, load_processor, save_pretrained
from mmedexpert_jax.models.config import TextConfig, VisionConfig
from mmedexpert_jax.models.load import MINI, read_config
from mmedexpert_jax.models.network import tensor_shapes
from mmedexpert_jax.models.tree import nest
from mmedexpert_jax.processing.llava_templates import VICUNA
from mmedexpert_jax.processing.processor import Marks, Processor
from mmedexpert_jax.processing.squares import SquareConfig

STEPS = 16
WIDTH = 128
QWEN: dict[str, tuple[TextConfig, VisionConfig]] = {
    "qwen2_vl": (
        TextConfig(0, WIDTH, 192, 2, 4, 2, mrope_section=(4, 6, 6)),
        VisionConfig("qwen2_vl", 2, 128, 256, 4, WIDTH),
    ),
    "qwen2_5_vl": (
        TextConfig(0, WIDTH, 192, 2, 4, 2, mrope_section=(4, 6, 6)),
        VisionConfig("qwen2_5_vl", 2, 128, 192, 4, WIDTH, full_attention_blocks=(1,)),
    ),
    "qwen3_vl": (
        TextConfig(
            *(0, WIDTH, 192, 3, 4, 2), mrope_section=(8, 4, 4), head_width=32, bias=False, qk_norm=True,
            mrope_interleaved=True,
        ),
        VisionConfig("qwen3_vl", 2, 128, 192, 4, WIDTH, patch_size=16, num_positions=36, deepstack_blocks=(0,)),
    ),
}  # fmt: skip
LLAVA = (
    TextConfig(0, WIDTH, 192, 2, 4, 2, mrope_section=(16, 0, 0), bias=False, kind="mistral"),
    VisionConfig(
        *("llava", 3, 128, 192, 4, WIDTH), temporal_patch_size=1, merge_size=1, num_positions=17, image_size=56,
        eps=1e-5, activation="quick_gelu", class_token=True, feature_blocks=2,
    ),
)  # fmt: skip
# Run by the other Python with the folder, the questions and the program
CHILD = r"""
import json, os, sys
import numpy as np
folder, questions, program = sys.argv[1:]
asked = json.load(open(questions))
if program == "vllm":
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    import vllm
    from PIL import Image
    how = {"enforce_eager": True, "max_model_len": 512, "limit_mm_per_prompt": {"image": 2}}
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
        inputs = {key: torch.tensor(values) for key, values in np.load(one["inputs"]).items()}
        length = inputs["input_ids"].shape[1]
        out = model.generate(**inputs, max_new_tokens=asked["steps"], do_sample=False)
        said.append({"prompt": inputs["input_ids"][0].tolist(), "answer": out[0, length:].tolist()})
    version = transformers.__version__
print("ANSWERS" + json.dumps({"version": version, "said": said}))
"""


def make(family: str, folder: Path) -> Processor:
    """Writes a random model of a family with the embedded tokenizer, and returns its processor."""
    processor = load_processor(MINI)
    mini = read_config(MINI)
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id", "eos_token_ids")
    ids = {key: getattr(mini, key) for key in (*names, "pad_token_id", "bos_token_id")}
    text, vision = LLAVA if family == "llava" else QWEN[family]
    if family == "llava":
        processor.tokenizer.add_tokens([AddedToken("<image>", special=True, normalized=False)])
        settings = {"image_token": "<image>", "num_additional_image_tokens": 1, "patch_size": 14}
        settings |= {"vision_feature_select_strategy": "default"}
        marks = Marks("<image>", "<|im_end|>", ("<image>",))
        processor = Processor(processor.tokenizer, SquareConfig(56), VICUNA, "llava", marks, settings)
        ids["image_token_id"] = processor.image_token_id
    else:
        config = replace(
            processor.image_config, patch_size=vision.patch_size, max_pixels=200_704, stored_max_pixels=200_704
        )
        processor = Processor(processor.tokenizer, config, None, family)
    text = replace(text, vocab_size=1952, rms_norm_eps=1e-6)  # vLLM gives the tower's norms the decoder's epsilon
    model = Model(ModelConfig(text, vision, tie_word_embeddings=False, **ids))
    draw = np.random.default_rng(0)

    def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        return (centre + 0.2 * draw.standard_normal(shape)).astype(np.float32)

    params = nest({name: tensor(name, shape) for name, shape in tensor_shapes(model.config).items()})
    save_pretrained(folder, model, params, processor)
    return processor


def questions(folder: Path) -> list[list[dict]]:
    """Conversations with no, one and two images, whose files stand in the folder."""
    pictures = []
    for width, height in ((130, 65), (64, 97)):
        values = np.random.default_rng([width, height]).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{width}.png")
        pictures.append({"type": "image", "image": str(folder / f"{width}.png")})
    said = {"type": "text", "text": "What is the score of a woman of 61?"}
    return [[{"role": "user", "content": [*pictures[:count], said]}] for count in range(3)]


def inputs_of(processor: Processor, conversation: list[dict]) -> dict[str, np.ndarray]:
    """The arguments of transformers' `generate`."""
    encoded = processor.encode(conversation)
    found = {"input_ids": encoded.tokens[None].astype(np.int64)}
    found["attention_mask"] = np.ones_like(found["input_ids"])
    if not encoded.images:
        return found
    patches = [patches for patches, _ in encoded.images]
    if processor.family == "llava":
        side = encoded.images[0][1][0]
        squares = np.stack(patches).reshape(len(patches), side, side, 3, 14, 14).transpose(0, 3, 1, 4, 2, 5)
        return found | {"pixel_values": squares.reshape(len(patches), 3, side * 14, side * 14)}
    grids = np.array([(1, *grid) for _, grid in encoded.images], np.int64)
    return found | {"pixel_values": np.concatenate(patches), "image_grid_thw": grids}


def short(processor: Processor, conversation: list[dict]) -> list[int]:
    """Ids with one pad for each image, which vLLM repeats itself."""
    encoded = processor.encode(conversation)
    kept, seen = [], iter([len(patches) // processor.image_config.merged for patches, _ in encoded.images])
    place = 0
    while place < len(encoded.tokens):
        kept.append(int(encoded.tokens[place]))
        place += next(seen) if kept[-1] == processor.image_token_id else 1
    return kept


def compare(family: str, python: str, program: str, folder: Path) -> str:
    """One family in both programs: a line that says how many tokens of how many agree."""
    processor = make(family, folder / family)
    model, params = mx.load_model(folder / family)
    asked = questions(folder)
    ours, given = [], []
    for number, conversation in enumerate(asked):
        with jax.default_matmul_precision("highest"):
            out = mx.generate(
                model, params, processor([conversation]), key=jax.random.key(0), num_samples=1, max_new_tokens=STEPS,
                temperature=0.0, stop_ids=(),
            )  # fmt: skip
        ours.append(np.asarray(out.tokens)[0, 0].tolist())
        np.savez(folder / f"{number}.npz", **inputs_of(processor, conversation))
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
    agreed = sum(
        a == b for one, mine in zip(said["said"], ours, strict=True) for a, b in zip(one["answer"], mine, strict=True)
    )
    return (
        f"{family}: {program} {said['version']}: {agreed} of {STEPS * len(asked)} tokens agree, "
        f"{prompts} of {len(asked)} prompts are the same ids"
    )


def main() -> None:
    """Reads the flags and compares the families in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="interpreter that has the other program")
    parser.add_argument("--program", choices=("transformers", "vllm"), required=True)
    parser.add_argument("--families", default="qwen2_vl,qwen2_5_vl,qwen3_vl,llava")
    flags = parser.parse_args()
    for family in flags.families.split(","):
        with tempfile.TemporaryDirectory() as folder:
            print(compare(family, flags.python, flags.program, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
