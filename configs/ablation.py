"""The paper's questions (Table 3, Figure 3), answered over seeds: every row trained, merged and evaluated alike."""

from mmedexpert_jax.config import presets
from mmedexpert_jax.config.fields import Config, Field, free, one_of

PRESETS = ("mini", "smollm2", "qwen2_vl_2b", "lingshu_7b", "omnimedvqa")


def get_config(preset: str = "mini") -> Config:
    """Fields of the job under a preset."""
    base = "qwen2_vl_2b" if preset == "omnimedvqa" else preset
    config = presets.common("ablation", base)
    config.preset = preset
    # of the paper: 3 (with Figure 3) or 4 (GBA on 1,000 items)
    config.table = Field(4 if preset == "omnimedvqa" else 3, low=3, high=4)
    config.seeds = (0, 1, 2, 3, 4)  # of data order, initialisation and sampling; a row is trained under each
    config.rows = free(())  # rows by name, as "Ours,GBA"; empty: all
    # methods of Figure 3 (c) take the place of TIES in "all" merges, or in the "last" one
    config.rivals = one_of("all", "last")
    config.stages = free("")  # folder of the stages, which sweeps may share; empty: stages/ in the run directory
    config.questions = 0  # items that every row answers, drawn by `seed`; 0: all
    config.dsa = presets.stage("dsa", base, without=("specialty",))
    config.merge = presets.stage("merge", base, without=("experts", "weights"))
    config.gba = presets.stage("gba", base)
    config.evaluate = presets.stage("evaluate", base, without=("compare",))
    config.diversity = Config()
    config.diversity.questions = 200  # items whose answers are sampled too, drawn by `seed`; 0: all
    # answers to each: as many as a group of equation 4 has (G, appendix B)
    config.diversity.num_samples = Field(8, low=1)
    config.diversity.temperature = 1.0  # of sampling; the on-policy value
    config.expected = Config()
    config.expected.dsa = 0.0  # seconds of a step of DSA, for the projected time; 0: not known
    config.expected.gba = 0.0  # seconds of a step of GBA
    config.expected.merge = 0.0  # seconds of a merge
    config.expected.answer = 0.0  # seconds of an answer in an evaluation, greedy or sampled
    config.expected.start = 0.0  # seconds that a stage takes besides: loading, compiling, writing

    config.dsa.eval.every = config.gba.eval.every = -1  # every row is evaluated once, when it is made
    config.evaluate.report_items = 0  # the sweep has a report of its own
    if preset == "mini":
        config.gba.steps = 24
        config.questions = 400
        config.diversity.questions = 64
        config.expected.dsa = 1.2
        config.expected.gba = 2.6
        config.expected.merge = 2.0
        config.expected.answer = 0.012
        config.expected.start = 3.0
    elif preset == "omnimedvqa":
        config.data.path = "benchmark:omnimedvqa@train_1000=hub"
        config.evaluate.benchmarks = ("omnimedvqa@test_rest=hub",)
    elif preset != "smollm2":
        config.evaluate.benchmarks = ("medxpertqa_mm=hub",)  # "Avg. Score" of Table 3 is its total
    return config
