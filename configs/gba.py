"""GBA (section 4.2): reinforcement learning with guideline-conditioned prompts and group advantages."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from mmedexpert_jax.launch import presets

PRESETS = ("mini", "smollm2", "qwen2_vl_2b", "lingshu_7b")


def get_config(preset: str = "mini") -> ConfigDict:
    """Fields of the job under a preset."""
    config = presets.training("gba", preset)
    config.epochs = 1  # passes over the training cases where steps is 0; not given in the paper
    config.lr = 1e-6  # learning rate of AdamW; not given for RL in the paper: that of DSA (appendix B)

    # rollouts
    config.prompts_per_step = 8  # prompts of P_guide per optimizer step; not given in the paper
    config.num_samples = 8  # G, completions per prompt; appendix B
    config.max_new_tokens = 1024  # tokens of a completion; appendix B
    config.temperature = 1.0  # of sampling; the on-policy value
    config.top_k = 0  # sample among the k likeliest tokens; 0: all
    config.top_p = 1.0  # sample from the smallest set with this probability; 1: all

    # objective
    config.objective = "gba"  # "gba" (section 4.2), or "grpo": no guidelines, no structure reward, all else equal
    config.clip = 0.2  # epsilon of the clipped ratio; appendix B
    config.clip_high = placeholder(float)  # upper epsilon (DAPO's clip-higher); none: the same as clip
    config.beta = 0.001  # weight of the k3 KL to the adapter-off reference; appendix B; 0: no reference
    config.aggregation = "sequence"  # "sequence" (1/|y_i|, equation 5), "token" (DAPO) or "constant" (Dr. GRPO)
    config.advantage_eps = 1e-4  # epsilon of equation 4; value of the R1 family (TRL)
    config.advantage_ddof = 1  # degrees of freedom taken off the group's standard deviation; the R1 family (TRL)
    config.inner_epochs = 1  # passes over one rollout; 1: on-policy, the ratio is 1
    config.minibatches = 1  # updates per pass, each on its share of the prompts
    config.micro_batch = 1  # prompts of one gradient, summed up to an update's; 0: all; changes memory, not the result

    # guidelines
    config.group_by = "prompt"  # whose samples compete: one "prompt" (equation 4) or all paradigms of one "query"
    config.paradigms_per_query = 1  # paradigms under which a query is asked per epoch, 1 to 4, assigned in balance
    config.guideline_text = ""  # JSON file, task or case id -> text that prompts quote; empty: the instruction alone

    config.rewards = ConfigDict()
    config.rewards.accuracy = 1.0  # weight: the answer in <answer> is the key
    config.rewards.format = 0.5  # weight: one well-formed <think> and <answer>
    config.rewards.structure = 0.5  # weight: the reasoning follows its paradigm (section 4.2)
    config.rewards.length = 0.0  # weight: no longer than needed
    config.rewards.functions = ()  # own rewards, each "module.function=weight"
    config.rewards.shuffle = False  # negative control: rewards are shuffled among the samples

    config.samples_every = 10  # optimizer steps between tables of completions in samples/
    config.explain = 0  # completions to explain: prompt, tokens, rewards, advantage, share of the gradient

    if preset == "mini":
        config.steps = 48
        config.lr = 1.5e-3
        config.schedule = "linear"
        config.warmup_steps = 4
        config.prompts_per_step = 12
        config.micro_batch = 0
        config.max_prompt_length = 512
        config.max_new_tokens = 96
        config.eval.split = "test"
        config.eval.temperature = 1.0  # as it is trained; greedy answers flip where two ways are about as likely
    elif preset == "smollm2":
        config.steps = 20
        config.lr = 2e-4
        config.prompts_per_step = 4
        config.max_prompt_length = 512
        config.max_new_tokens = 160
        config.eval.limit = 64
        config.eval.batch_size = 16
    return config
