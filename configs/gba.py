"""GBA (section 4.2): reinforcement learning with guideline-conditioned prompts and group advantages."""

from types import SimpleNamespace
from typing import Any

from ml_collections import FieldReference

from mmedexpert_jax.config import presets
from mmedexpert_jax.config.fields import Config, Derived, Field, free, one_of, signed

PRESETS = (
    "mini",
    "smollm2",
    "qwen2_vl_2b",
    "lingshu_7b",
    "medgemma_4b",
    "medgemma_27b",
    "qwen2_vl_2b_lora",
    "lingshu_7b_lora",
)

# The plain rival of section 5.2.3: no guidelines, no reward for their structure, all else equal.
_GRPO = {"guided": False, "rewards.structure": 0.0}
# What an objective sets differently from gba. The papers behind those with beta 0 have no KL.
OBJECTIVES: dict[str, dict[str, Any]] = {
    "gba": {},
    "grpo": _GRPO,
    # Liu et al. 2025 (arXiv 2503.20783): neither 1 / |y| nor 1 / deviation, which bias the gradient
    "dr_grpo": _GRPO | {"aggregation": "constant", "advantage_scale": "none", "beta": 0.0},
    # Yu et al. 2025 (arXiv 2503.14476): token-level loss, clip-higher, dynamic sampling, soft overlong punishment
    "dapo": _GRPO
    | {"aggregation": "token", "clip_high": 0.28, "zero_variance": "refill", "rewards.length": 1.0, "beta": 0.0},
    # Zheng et al. 2025 (arXiv 2507.18071): the sequence's ratio, clipped close; four updates, since at one it is 1
    "gspo": _GRPO | {"ratio_level": "sequence", "clip": 3e-4, "clip_high": 4e-4, "minibatches": 4, "beta": 0.0},
    # Gao et al. 2025 (arXiv 2511.20347): a soft gate in the place of the clip
    "sapo": _GRPO | {"surrogate": "sapo", "beta": 0.0},
    # MiniMax 2025 (arXiv 2506.13585): REINFORCE under a cut ratio; cut at 5 as ScaleRL (2510.13786), token-level loss
    "cispo": _GRPO | {"surrogate": "cispo", "clip_high": 4.0, "aggregation": "token", "beta": 0.0},
    # Ahmadian et al. 2024 (arXiv 2402.14740): the mean of the others as baseline, no deviation
    "rloo": _GRPO | {"advantage_scale": "leave_one_out"},
    # Hu et al. 2025 (arXiv 2501.03262): group baseline, normalised over the step
    "reinforce_pp": _GRPO | {"advantage_scale": "global", "aggregation": "token"},
    # Liu et al. 2026 (arXiv 2601.05242): every reward normalised in its group before the sum; all else as gba
    "gdpo": {"advantage_scale": "decoupled"},
    # Wang et al. 2025 (arXiv 2507.06448), with GRPO: its weights for 7B, 60 % of the patches masked
    "papo": _GRPO | {"perception": 0.02, "perception_entropy": 0.03},
    # Dai et al. 2025 (arXiv 2506.00711): rare and hard specialties weigh more
    "drpo": _GRPO | {"advantage_weights": "drpo"},
}


def get_config(preset: str = "mini") -> Config:
    """Fields of the job under a preset."""
    config = presets.training("gba", preset)
    config.epochs = 1.0  # passes over the training cases where steps is 0; not given in the paper
    config.lr = 1e-6  # learning rate of AdamW; not given for RL in the paper: that of DSA (appendix B)

    # which cases, and in which order; "zero_variance" below filters while it trains, and "online" says by what
    config.filter = Config()
    config.filter.samples = 0  # answers of the policy to each case before training, kept in samples/; 0: no filter
    config.filter.least = Field(0.05, high=1)  # pass rate from which a case is kept; 0 keeps those that are never right
    # pass rate up to which a case is kept; 1 keeps those that are always right
    config.filter.most = Field(0.95, high=1)
    # also while it trains: "zero_variance" drops or refills groups whose share of right answers is not from "least" to
    # "most", in the place of those of equal rewards (EasyR1's online_filtering, verl's filter_groups by acc)
    config.filter.online = False
    # every epoch from easy to hard by "pass_rate" (of the filter's samples) or by a column of the rows, a number that
    # rises with difficulty; empty: at random
    config.curriculum = ""

    # rollouts
    config.prompts_per_step = Field(8, low=1)  # prompts of P_guide per optimizer step; not given in the paper
    # G, completions per prompt; appendix B. 2 compares pairs (2-GRPO, Wu et al. 2025, arXiv 2510.00977: as good as 16
    # there for an eighth of the samples, or with so many more prompts_per_step at the same cost)
    config.num_samples = Field(8, low=1)
    config.max_new_tokens = Field(1024, low=1)  # tokens of a completion; appendix B
    config.temperature = 1.0  # of sampling; the on-policy value
    config.top_k = 0  # sample among the k likeliest tokens; 0: all
    config.top_p = Field(1.0, above=0, high=1)  # sample from the smallest set with this probability; 1: all
    # 0: on-policy, as in the paper; 1: the next step's rollouts are drawn while the update runs, from weights one step
    # old, which importance_cap corrects for; one device
    config.rollout_ahead = Field(0, high=1)

    # objective: its name sets the fields marked "by objective" (OBJECTIVES above), each of which may be set on its own
    objective = Derived("gba")
    # "gba" (section 4.2), its rival "grpo" (no guidelines), "dr_grpo", "dapo", "gspo", "sapo", "cispo", "rloo",
    # "reinforce_pp", "gdpo", "papo" or "drpo"
    config.objective = one_of(*OBJECTIVES, default=objective)

    def by_objective(name: str, default: Any, kind: type | None = None) -> FieldReference:
        """The objective's value of a field, as long as the field is not set itself; `default` is that of gba."""
        lookup = SimpleNamespace(fn=lambda _, chosen: OBJECTIVES.get(chosen, {}).get(name, default), args=[objective])
        return (Derived if kind is None else FieldReference)((kind or type(default))(), op=lookup)

    config.guided = by_objective("guided", True)  # prompts ask for a paradigm (P_guide); by objective
    config.clip = Field(by_objective("clip", 0.2), above=0)  # epsilon of the clipped ratio; appendix B; by objective
    # upper epsilon; none: the same as clip; by objective
    config.clip_high = Field(by_objective("clip_high", None, float), above=0)
    # weight of the k3 KL to the adapter-off reference; appendix B; 0: no reference; by objective
    config.beta = by_objective("beta", 0.001)
    # steps after which the reference becomes the policy (TRL's sync_ref_model, verl's SPIN); 0: the base for ever
    config.ref_every = 0
    # share of the policy in the new reference (TRL's 0.6); below 1 where trainable is "full"
    config.ref_mixup = Field(1.0, above=0, high=1)
    config.entropy_coef = 0.0  # weight of an entropy bonus (verl's entropy_coeff, TRL's entropy_coef); 0: none
    # weight of the KL to the policy that sees masked images, which is raised (PAPO: 0.01 to 0.02); by objective
    config.perception = by_objective("perception", 0.0)
    # weight of the entropy with and without masked patches, which is lowered (PAPO: 0.03); by objective
    config.perception_entropy = by_objective("perception_entropy", 0.0)
    config.perception_mask = Field(0.6, above=0, high=1)  # share of the patches that are masked, each by itself; PAPO
    # loss of a token: "clip" (appendix B), "cispo", "sapo", what else SURROGATES of gba/objective.py holds, or your own
    # as "path.py:function"; by objective
    config.surrogate = by_objective("surrogate", "clip")
    # further terms of the loss, each "path.py:function=weight", or "name=weight" of one of TERMS of gba/objective.py
    # that has no field
    config.terms = ()
    # "sequence" (1/|y_i|, equation 5), "token" (dapo) or "constant" (dr_grpo); by objective
    config.aggregation = one_of("sequence", "token", "constant", default=by_objective("aggregation", "sequence"))
    # ratio of each "token" or of the "sequence" (gspo); by objective
    config.ratio_level = one_of("token", "sequence", default=by_objective("ratio_level", "token"))
    # what an advantage is: rewards over the deviation of their "group" (equation 4) or of the "batch"; undivided
    # ("none", dr_grpo); against the others ("leave_one_out", rloo); normalised over the step ("global", reinforce_pp);
    # each function apart ("decoupled", gdpo); what else ESTIMATORS of gba/advantages.py holds, or your own as
    # "path.py:function"; by objective
    config.advantage_scale = by_objective("advantage_scale", "group")
    # what divides advantages besides: nothing ("equal"), the size and mean reward of a case's "specialty", or also
    # those of the difficulties in it ("drpo"); by objective
    config.advantage_weights = one_of("equal", "specialty", "drpo", default=by_objective("advantage_weights", "equal"))
    # groups of equal rewards: "keep", "drop" from the update, or "refill" by more rollouts (dapo's dynamic sampling);
    # by objective
    config.zero_variance = one_of("keep", "drop", "refill", default=by_objective("zero_variance", "keep"))
    # rollouts that a step adds at most, to refill; verl's filter_groups allows 10
    config.refill_rounds = Field(3, low=1)
    config.mask_truncated = False  # leave completions that ran into the limit out of the loss (TRL's field)
    # cap of the weights pi / pi_sampler that correct for a sampler whose rounding differs, or that is a step behind
    # (TRL's token_truncate; verl caps at 2); 0: no correction
    config.importance_cap = 0.0
    config.advantage_eps = Field(1e-4, above=0)  # epsilon of equation 4; value of the R1 family (TRL)
    # degrees of freedom taken off the group's standard deviation; the R1 family (TRL)
    config.advantage_ddof = Field(1, high=1)
    config.inner_epochs = Field(1, low=1)  # passes over one rollout; 1: on-policy, the ratio is 1
    # updates per pass, each on its share of the prompts; by objective
    config.minibatches = Field(by_objective("minibatches", 1), low=1)

    # devices and memory; none of it changes the result
    config.micro_batch = free(1)  # prompts of one gradient on each device, summed up to an update's; 0: all
    # capacities of the packed update, of which one is kept, and so compiled once, as long as it fits the steps; 0: rows
    # stay padded
    config.packing = free(64)

    # guidelines
    config.group_by = one_of("prompt", "query")  # whose samples compete: equation 4's, or all paradigms of a query
    # paradigms under which a query is asked per epoch, 1 to 4, assigned in balance
    config.paradigms_per_query = Field(1, low=1)
    config.guideline_text = ""  # JSON file, task or case id -> text that prompts quote; empty: the instruction alone

    config.rewards = Config()
    config.rewards.accuracy = signed(1.0)  # weight: the answer in <answer> is the key
    # weight: one well-formed <think> and <answer>. The paper gives no weights; with 0.5 for each of the two of form, a
    # right answer without reasoning (1.0) would tie with a wrong one in full form
    config.rewards.format = signed(0.2)
    # weight: the reasoning follows its paradigm (section 4.2); by objective
    config.rewards.structure = signed(by_objective("rewards.structure", 0.2))
    # weight: the soft punishment of overlong answers (dapo); by objective
    config.rewards.length = signed(by_objective("rewards.length", 0.0))
    config.rewards.gated = False  # format and structure count only where the answer is right
    config.rewards.token_f1 = signed(0.0)  # weight: F1 of words with the reference answer of an open question
    # weight: -1 where the reasoning begins with its answer (the paper's appendix D)
    config.rewards.answer_first = signed(0.0)
    config.rewards.functions = ()  # own rewards, each "module.function=weight" or "path.py:function=weight"
    config.rewards.timeout = free(60.0)  # seconds of one call of an own function; 0: no limit
    config.rewards.attempts = free(3, low=1)  # calls of an own function that fails, before the step is given up
    config.rewards.workers = free(16, low=1)  # calls of own functions at once
    config.rewards.judge = Config()
    config.rewards.judge.weight = signed(0.0)  # of a language model's word on each completion; 0: none is asked
    # "rubric": a score over 10; "pairwise": wins within the group
    config.rewards.judge.kind = one_of("rubric", "pairwise")
    config.rewards.judge.rubric = ""  # what a score is given for, or a .txt file of it; empty: sound reasoning
    # model in process in place of an endpoint: "policy" (this run's, as it begins), "mini", a directory or a hub id
    config.rewards.judge.path = ""
    config.rewards.judge.model = ""  # name at the endpoint
    config.rewards.judge.url = free("")  # of an OpenAI-compatible server
    config.rewards.judge.key_env = ""  # environment variable with its key; empty: none is sent
    # text that may identify a person: "report", "redact" or "refuse"
    config.rewards.judge.privacy = one_of("report", "redact", "refuse")
    # of a reply, hidden reasoning included: a line needs no more; 2048 for a model that thinks
    config.rewards.judge.max_tokens = Field(256, low=1)
    config.rewards.judge.effort = ""  # reasoning effort at the endpoint, such as "medium"; empty: not sent
    config.rewards.judge.concurrency = free(16, low=1)  # requests in flight at most
    config.rewards.judge.requests_per_minute = free(0)  # 0: no limit
    config.rewards.judge.tokens_per_minute = free(0)  # prompt and completion; 0: no limit
    config.rewards.judge.timeout = free(300.0, above=0)  # seconds of one attempt
    config.rewards.judge.max_attempts = free(8, low=1)  # of one request in a step
    config.rewards.judge.budget = free(0.0)  # dollars; 0: no limit
    config.rewards.judge.price_input = 0.0  # dollars per million prompt tokens
    config.rewards.judge.price_output = 0.0  # dollars per million completion tokens
    # cosine of the embeddings of answer block and reference answer; abstains on multiple choice
    config.rewards.similarity = Config()
    config.rewards.similarity.weight = signed(0.0)  # of the cosine, from 0 to 1; 0: nothing is embedded
    # embedder in process: mean of the last hidden states of "policy" (this run's, as it begins), a directory or a hub
    # id; empty: an endpoint's /embeddings
    config.rewards.similarity.path = "policy"
    config.rewards.similarity.model = ""  # name at the endpoint
    config.rewards.similarity.url = free("")  # of an OpenAI-compatible server
    config.rewards.similarity.key_env = ""  # environment variable with its key; empty: none is sent
    # text that may identify a person: "report", "redact" or "refuse"
    config.rewards.similarity.privacy = one_of("report", "redact", "refuse")
    config.rewards.similarity.concurrency = free(16, low=1)  # requests in flight at most
    config.rewards.similarity.requests_per_minute = free(0)  # 0: no limit
    config.rewards.similarity.tokens_per_minute = free(0)  # of the texts; 0: no limit
    config.rewards.similarity.timeout = free(300.0, above=0)  # seconds of one attempt
    config.rewards.similarity.max_attempts = free(8, low=1)  # of one request in a step
    config.rewards.similarity.budget = free(0.0)  # dollars; 0: no limit
    config.rewards.similarity.price_input = 0.0  # dollars per million tokens
    config.rewards.shuffle = False  # negative control: rewards are shuffled among the samples

    config.samples_every = free(10)  # optimizer steps between tables of completions in samples/
    config.explain = free(0)  # completions to explain: prompt, tokens, rewards, advantage, share of the gradient

    if preset == "mini":
        config.steps = 48
        config.lr = 1.5e-3
        config.schedule = "linear"
        config.warmup_steps = 4
        config.prompts_per_step = 12
        config.micro_batch = 0
        config.packing = 1
        config.max_prompt_length = 512
        config.max_new_tokens = 96
        config.eval.split = "test"
        config.eval.temperature = 1.0  # as it is trained; greedy answers flip where two ways are about as likely
    elif preset == "smollm2":
        # The decoder alone never writes the format of answers, so that all rewards are 0: a look at the job, which took
        # 380 CPU seconds. For rewards that differ, start from an expert: --config.model.path=runs/dsa-smollm2/AM
        config.steps = 5
        config.lr = 2e-4
        config.prompts_per_step = 2
        config.packing = 1
        config.max_prompt_length = 512
        config.max_new_tokens = 128
        config.eval.limit = 16
        config.eval.batch_size = 16
    elif preset.endswith("_lora"):
        config.lr = presets.LORA_RATE
    return config
