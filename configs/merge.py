"""Merging (section 4.3): TIES and other methods over the experts' task vectors."""

from mmedexpert_jax.config import presets
from mmedexpert_jax.config.fields import SPECIALTIES, Config, Field, one_of, signed

PRESETS = ("mini", "smollm2", "qwen2_vl_2b", "lingshu_7b", "medgemma_4b", "medgemma_27b")

METHODS = (
    *("ties", "task_arithmetic", "magnitude_prune", "dots", "dare_linear", "dare_ties", "della", "della_linear"),
    *("breadcrumbs", "breadcrumbs_ties", "fisher", "sar", "sce", "ram", "ramplus", "nearswap", "arcee_fusion"),
    *("average", "slerp", "slerp_rows", "slerp_columns", "nuslerp", "multislerp", "karcher", "model_stock"),
    *("model_stock_rows", "tsv_m", "iso_c", "wudi", "optmerge", "weight_sum", "weight_slerp", "weight_slerp_rows"),
    *("weight_slerp_columns", "weight_nuslerp", "weight_multislerp", "weight_karcher"),
)


def get_config(preset: str = "mini") -> Config:
    """Fields of the job under a preset."""
    config = presets.common("merge", preset)
    runs = f"runs/dsa-{preset}"
    config.experts = tuple(f"{runs}/{name}" for name in SPECIALTIES)  # "path" or "name=path" of runs, adapters, models
    config.weights = ()  # a number per expert, in their order; empty: all 1
    config.method = one_of(*METHODS)  # "ties" (equation 7), or another method: docs/merging.md lists them
    # where codes differ: "paper" (algorithm 1), "official", "mergekit" or "peft"
    config.rules = one_of("paper", "official", "mergekit", "peft")
    # share of each task vector's entries kept; not given in the paper, value of the TIES authors
    config.density = Field(0.2, above=0, high=1)
    config.scale = signed(1.0)  # lambda, factor of the merged task vector; not given in the paper
    # Before the trim and the election, task vectors get one magnitude, the mean of the experts': "none" (the paper), by
    # the norm of a "tensor", a "module" or the "global" model, or by a tensor's "median" magnitude. An RL vector is ten
    # to thirty times shorter than SFT vectors (arXiv 2605.00610), and then loses every election: the report says so.
    config.normalize_vectors = one_of("none", "tensor", "module", "global", "median")
    # Adapters are merged in a basis that their factors span: "core" (arXiv 2509.17786) or "knots" (arXiv 2410.19735);
    # "": entry by entry, as they are (the paper)
    config.space = one_of("", "core", "knots")
    # of methods "fisher" and "sar": prompts of eval.split that each expert's Fisher information is measured on, without
    # their answers
    config.fisher_prompts = Field(64, low=1)
    config.parameters = ()  # before those above: "[expert.]density|weight|scale|gamma|epsilon[@path]=value[:value...]"
    config.mergekit = ""  # a mergekit YAML file to take base, experts, method and numbers from; empty: the fields here
    # "model", or "recipe": only written down, and applied where it is an expert or its base
    config.result = one_of("model", "recipe")
    config.rank = 0  # 0: a full model; r: an adapter of that rank, by truncated SVD
    # start of the task vector of an expert named RL: "base" (section 4.3), or "start" of GBA
    config.rl_origin = one_of("base", "start")
    config.sweep = Config()
    config.sweep.densities = ()  # densities to compare, in one pass over the data; empty: no sweep
    config.sweep.scales = (1.0,)  # with each of these scales
    config.sweep.score = False  # score every pair on held-out cases (eval), and merge with the best
    config.sweep.trials = 0  # with score: so many more looks, at weights of each expert from the best pair on; 0: none
    config.max_prompt_length = Field(1024, low=1)  # of the scored cases, tokens
    config.max_new_tokens = Field(96 if preset == "mini" else 1024, low=1)  # of their answers
    config.eval = Config()
    config.eval.every = Field(0, low=-1)  # as in the training jobs; scoring is switched by sweep.score
    config.eval.limit = 0  # cases; 0: as many as limit
    config.eval.split = "dev"  # choices are made on dev, test is for reporting
    config.eval.num_samples = Field(1, low=1)  # answers per case
    config.eval.temperature = 0.0  # of sampling; 0: greedy
    config.eval.batch_size = Field(64, low=1)  # prompts decoded together
    return config
