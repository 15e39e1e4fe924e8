"""Fixtures that tests of several parts share. No JAX here: the suites that need it import it themselves."""

import gc
import hashlib
import json
import os
import platform
import shutil
from importlib import metadata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

# Tiny programs run once or twice, and compiling them is most of a test. The gradient of a model of two layers takes 12
# CPU seconds as users compile it, 5.2 without LLVM's optimizer, 2.0 without emitters by MLIR too, 1.6 in one module.
# Tests that start processes with devices of their own add to these flags; none takes them away.
FAST = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FAST}".strip()


def _compilation_cache() -> Path:
    """A folder of the user's for compiled programs, which tests, workers and later runs share.

    Programs for a CPU may use any instruction that it has, so each kind of CPU gets a folder, as does each JAX.
    """
    cpu = Path("/proc/cpuinfo")
    flags = (
        next((line for line in cpu.read_text().splitlines() if line.startswith("flags")), "") if cpu.exists() else ""
    )
    name = hashlib.sha256(f"{platform.machine()} {flags} {metadata.version('jaxlib')}".encode()).hexdigest()[:12]
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "mmedexpert_jax" / "tests" / name


os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_compilation_cache()))
# However small: compiling one addition takes 18 CPU milliseconds, keeping it 0.5 more, and reading it back 3.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# No program carries the lines of Python that each of its operations comes from, a tenth of what compiling takes.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

# Tracing makes objects by the hundred thousand and drops few of them in cycles: looking for these after every 700 is a
# quarter of the time that tracing takes. Processes that tests start do the same: tests/startup/sitecustomize.py.
gc.set_threshold(100_000, 50, 100)
STARTUP = str(Path(__file__).parent / "startup")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [STARTUP, os.environ.get("PYTHONPATH")]))

# One thread a worker for BLAS and torch: two workers with a pool each would get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Workers of `-n auto`, which pyproject.toml sets: one a core for a room or the suite, none for chosen tests.

    A worker takes up to 3 GB and several seconds to start, more than most single tests take.
    """
    chosen = config.option.keyword or any("::" in name or name.endswith(".py") for name in config.args)
    return 0 if chosen else min(os.cpu_count() or 1, 8)


# Files of most CPU seconds, which go first: a long one that comes last keeps one worker while the others idle. xdist's
# own order, most tests first, is about the opposite.
LONGEST = (
    *("notebooks/test_notebooks", "gba/test_trainer", "gba/test_devices", "gba/test_terms", "fuzz/test_kills"),
    *("train/test_steps", "gba/test_scanned", "models/test_decode_attention", "rollout/test_decode"),
    *("launch/test_serve", "mmedexpert/test_factory", "rollout/test_server", "models/test_stacked"),
    *("launch/test_killed", "sft/test_trainer", "models/test_llava", "launch/test_processes", "models/test_strips"),
    *("rollout/test_engine", "models/test_sharded", "models/test_gemma3", "sft/test_policy", "launch/test_plan"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts the tests by file, those of LONGEST first."""
    rank = {name: number for number, name in enumerate(LONGEST)}
    root = Path(__file__).parent
    items.sort(key=lambda item: rank.get(item.path.relative_to(root).with_suffix("").as_posix(), len(rank)))


# A busy machine is slow, not wrong. The same examples in every run, so that none fails by a draw that its change has
# nothing to do with; `--hypothesis-profile=search` draws new ones.
SUITE = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.register_profile("suite", SUITE)
settings.register_profile("search", SUITE, derandomize=False)
settings.load_profile("suite")

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CORPUS = (
    "You are a helpful assistant. system user assistant\n",
    "A 67-year-old woman has confusion, a respiratory rate of 32 per minute and urea of 9 mmol/L. What is her score?\n",
    "A. 1\nB. 2\nC. 3\nD. 4\nThink in <think> and </think>, then give the letter in <answer> and </answer>.\n",
    "The differential diagnosis includes stroke, sepsis and pneumonia; the most likely is pneumonia. Answer: C\n",
)


def write_tokenizer(directory: Path) -> None:
    """A byte-level BPE of about 400 entries with Qwen2's rules and the family's special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=386, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in QWEN2_SPECIAL_TOKENS])
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "bos_token": None,
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 32768,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    image_settings = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "min_pixels": 56 * 56,
        "max_pixels": 12_845_056,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(image_settings))


@pytest.fixture(scope="session")
def tiny_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that `Processor.load` reads: 400 ids, special tokens last, the hub's preprocessor settings."""
    directory = tmp_path_factory.mktemp("tiny_tokenizer")
    write_tokenizer(directory)
    return directory


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium: Debian's, or what stands on the path or in CHROMIUM. Of the slow tier alone."""
    from playwright.sync_api import sync_playwright

    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    assert program, "no Chromium found: apt-get install chromium, or give its path in CHROMIUM"
    with sync_playwright() as started:
        opened = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()
