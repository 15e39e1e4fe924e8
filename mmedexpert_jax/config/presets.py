"""Fields that several jobs share, and the base models behind the presets. The files in configs/ build on these.

All that is known of a field stands where it is assigned. Its comment is its documentation (`--list_config`): meaning,
unit, where the default comes from; sections, equations and appendices are those of the paper (arXiv 2601.10949). Around
the default stand its bounds or choices, and whether a resumed run may change it (config/fields.py).
"""

from mmedexpert_jax.config.fields import Config, Field, free, grows, one_of
from mmedexpert_jax.config.job_config import read_config

JOBS = (
    *("dsa", "gba", "merge", "evaluate", "pipeline", "ablation", "export", "pretrain", "review", "dataset"),
    *("contamination", "serve", "ask"),
)
MODELS = {
    "mini": "mini",
    "smollm2": "smollm2",
    "qwen2_vl_2b": "Qwen/Qwen2-VL-2B-Instruct",
    "lingshu_7b": "lingshu-medical-mllm/Lingshu-7B",
    "medgemma_4b": "google/medgemma-4b-it",
    "medgemma_27b": "google/medgemma-27b-it",
}
# Rate of the presets ..._lora of dsa and gba, which differ from their namesakes in it alone. The paper's 1e-6 hardly
# moves deltas: LoRA wants about ten times the rate of full training, in supervised training and RL alike (Thinking
# Machines, "LoRA Without Regret"; TRL's guide to it takes 1e-5 where full RL takes 1e-6).
LORA_RATE = 1e-5
# Fields that a pipeline sets once for all its stages.
SHARED = (
    *("job", "preset", "workdir", "seed", "fresh", "plan", "plan_mesh", "plan_compile", "limit", "tracker", "price"),
    *("model", "data"),
)


def model_of(preset: str) -> str:
    """The preset without its variant, as the jobs that do not train know it."""
    return preset.removesuffix("_lora")


def common(job: str, preset: str) -> Config:
    """Fields of every job."""
    config = Config()
    config.job = Field(job, choices=JOBS)  # stage that runs; set by the config file
    config.preset = preset  # preset that was chosen after the colon of --config
    # run directory; empty: runs/<job>-<preset>, for one DSA expert runs/dsa-<preset>/<specialty>
    config.workdir = free("")
    config.seed = 0  # of data order, initialisation and sampling
    config.fresh = free(False)  # start over: what the run made in its directory is deleted
    config.plan = free(False)  # print what the job would read, do and write, and stop before it
    # devices to plan for: "a100x8", "h100x8", "h200x8", "v5e-8" (or "v5litepod-8"), "v6e-8", "v5p-8" (4 chips of two
    # cores, as Google counts, also "v5px4"); empty: those of this machine
    config.plan_mesh = free("")
    config.plan_compile = free(False)  # a plan compiles the update for its memory, in minutes; else a formula counts it
    config.limit = 0  # cases read at most per split, specialties in turn; 0: all
    # beside metrics.jsonl and TensorBoard, which are always written: "wandb", "trackio" or "wandb,trackio" of the extra
    # "trackers"; empty: none
    config.tracker = one_of("", "tensorboard", "wandb", "trackio", several=True, resume="free")
    config.price = free(0.0)  # dollars for an hour of one device, for the cost in reports; 0: no money is printed
    config.model = Config()
    # base model: "mini", "smollm2", a Hugging Face directory or hub id, or a run
    config.model.path = MODELS[model_of(preset)]
    # of the base weights; empty: float32 on CPU, the checkpoint's elsewhere and in exports
    config.model.dtype = one_of("", "float32", "bfloat16", "float16")
    config.model.base = ""  # model under the adapter at model.path; empty: the one that its adapter_config.json names
    config.model.vision_tower = ""  # folder of a LLaVA's vision tower, where its own files lack it; empty: none
    config.model.max_pixels = 0  # of an image; 0: the checkpoint's, at most 512 tokens (appendix B; Qwen2-VL: 401,408)
    config.model.pan_and_scan = False  # Gemma 3: long images are shown in up to 4 parts too, each as many tokens
    # bits of the frozen base's linear layers, for a LoRA over it and for answers: "none", "int8" by output channel or
    # "nf4" in blocks of 64 (QLoRA); made whole layer by layer and computed in model.dtype. Merges and exports are over
    # the base as it is
    config.model.quantize = one_of("none", "int8", "nf4")
    config.data = Config()
    # "mini", a .parquet or .jsonl file, a directory with one per split, "hub:owner/name[@revision]", a data set of the
    # Hugging Face hub with these, or "benchmark:name[:subset][@split][=source]"
    config.data.path = "mini"
    return config


def training(job: str, preset: str) -> Config:
    """Fields of the jobs that train."""
    config = common(job, preset)
    config.steps = grows(0)  # optimizer steps; 0: from epochs
    # passes over the training cases where steps is 0, whole or a part of one (0.5); appendix B (DSA)
    config.epochs = grows(3.0)
    config.lr = Field(1e-6, above=0)  # learning rate of AdamW; appendix B (DSA)
    # of the rate: "constant", or "linear" or "cosine" to 0; not given in the paper
    config.schedule = one_of("constant", "linear", "cosine")
    config.warmup_steps = 0  # updates over which the learning rate rises; not given in the paper
    # share of the run's updates over which it rises, where warmup_steps is 0; TRL's field
    config.warmup_ratio = Field(0.0, high=1)
    config.adam_betas = (0.9, 0.999)  # of AdamW; TRL's defaults
    config.weight_decay = 0.0  # of AdamW, on matrices alone, not on norms and biases; TRL's default
    config.max_grad_norm = 1.0  # the gradient's norm is clipped to it; TRL's default; 0: not clipped
    config.trainable = one_of("lora", "full")  # "lora" (appendix B) or "full": every parameter
    # recompute activations in the backward pass: less memory, more time
    config.remat = free(preset not in ("mini", "smollm2"))
    # compile one layer for all of a model with 12 or more: a fifth of the time; with trainable=full or rollout_ahead
    # it takes a copy of the weights in memory while a gradient is computed; MaxText's field
    config.scan_layers = free(True)
    config.lora = Config()
    config.lora.rank = Field(16, low=1)  # r; appendix B
    config.lora.alpha = Field(32.0, above=0)  # scale of the deltas is alpha / rank; appendix B
    # "all-linear" (appendix B), vision tower included as in peft, or "text"
    config.lora.targets = one_of("all-linear", "text")
    # tokens, images included (max_pixels, appendix B, are 512); longer is refused
    config.max_prompt_length = Field(1024, low=1)
    # training cases over max_prompt_length, or in DSA over max_new_tokens: "error" refuses them, "drop" leaves them out
    # and says how many (verl's filter_overlong_prompts)
    config.overlong = one_of("error", "drop")
    config.mesh = Config()
    config.mesh.data = free(-1, low=-1)  # devices among which rows are split; -1: all
    config.mesh.fsdp = free(1, low=-1)  # as data, and "shard" splits what it names among these
    config.mesh.tensor = free(1, low=1)  # devices among which every weight is split; a divisor of the heads
    # held in parts: "none", the "optimizer" state (ZeRO-2), or weights too ("full", ZeRO-3)
    config.shard = one_of("none", "optimizer", "full", resume="free")
    config.checkpoint_every = free(50, low=1)  # optimizer steps between checkpoints
    # of the last checkpoints, besides the best one; 1 leaves none if it breaks
    config.keep_checkpoints = free(2, low=1)
    # step of a kept checkpoint to go back to: what is later is deleted, and the same command then goes on; 0: the last
    config.resume_from = free(0)
    # fields that this run may have another value of than the one it goes on with, such as lr
    config.allow_changes = free(())
    config.eval = Config()
    # optimizer steps between evaluations; 0: at the start and the end only; -1: never
    config.eval.every = Field(0, low=-1)
    config.eval.limit = 0  # cases; 0: as many as limit
    config.eval.split = "dev"  # choices are made on dev, test is for reporting
    config.eval.num_samples = Field(1, low=1)  # answers per case
    config.eval.temperature = 0.0  # of sampling; 0: greedy
    config.eval.batch_size = Field(64, low=1)  # prompts decoded together
    config.eval.best = False  # export the checkpoint with the best held-out accuracy, not the last one
    config.eval.patience = free(0)  # evaluations in a row without a better accuracy that end the run; 0: none does
    return config


def stage(job: str, preset: str, without: tuple[str, ...] = ()) -> Config:
    """Config of another job as a group of a pipeline, less the fields that the pipeline sets itself."""
    config = read_config(f"configs/{job}.py:{preset}").unlock()
    for name in (*SHARED, *without):
        del config[name]
    if "resume_from" in config:  # a step of one run; a stage may be several
        del config.resume_from
    return config
