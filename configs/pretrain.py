"""The recipe of the embedded `mini` model (weights in mmedexpert_jax/assets/mini), in two runs, `text` and then `mini`.

On two idle cores the first takes under 50 minutes, the second about 25. The weights that ship were made in pieces, each
with a fresh optimizer: 1,000 steps; 200 with seed=7, pictured_share=0.6; 160 with seed=8 and 0.375; 360 with seed=9.
"""

from mmedexpert_jax.config import presets
from mmedexpert_jax.config.fields import Config, Field, free, grows

PRESETS = ("mini", "text")


def get_config(preset: str = "mini") -> Config:
    """Fields of the recipe."""
    config = Config()
    config.job = Field("pretrain", choices=presets.JOBS)  # stage that runs; set by the config file
    config.preset = preset  # preset that was chosen after the colon of --config
    config.workdir = free("")  # run directory; empty: runs/pretrain-<preset>
    config.seed = 0  # of initialisation and of the generated cases
    config.fresh = free(False)  # start over: what the run made in its directory is deleted
    config.plan = free(False)  # print what the job would read, do and write, and stop before it
    config.tokenizer = "mini"  # directory of tokenizer, chat template and image settings
    config.start = ""  # model directory whose weights are the first; empty: random ones
    config.describing_steps = 0  # first steps, in which pictures are described
    config.pictures_per_step = Field(48, low=1)  # pictures of such a step
    # share of a step's cases that the tasks with a picture have beside their share in all
    config.pictured_share = Field(0.0, high=1)
    config.steps = grows(1550)  # optimizer steps
    config.reading_steps = 60  # first steps that have reading exercises
    config.reading_share = Field(0.5, high=1)  # share of reading exercises in those steps
    config.naming_from = 350  # first step that has exercises in naming the letters of options
    config.naming_until = 550  # first step that has none again
    config.naming_share = Field(0.35, high=1)  # share of those exercises in the steps between
    config.answering_from = 550  # first step that has exercises in answering
    config.answering_until = 800  # first step that has none again
    config.answering_share = Field(0.4, high=1)  # share of those exercises in the steps between
    config.answer_weight = 4.0  # weight of an answer's letter in the loss from then on
    config.mixed_from = (870, 1400)  # first steps of the spans that read notes of mixed quality
    config.mixed_until = (950, 1550)  # first steps after them
    config.hasty_shares = (0.65, 0.85)  # shares of hasty traces in them
    config.guided_share = Field(0.5, high=1)  # share of prompts under one paradigm's instruction
    config.prompts_per_step = Field(16, low=1)  # cases of a step, two completions of each
    config.max_prompt_length = Field(144, low=1)  # tokens that prompts are padded to
    config.max_new_tokens = Field(96, low=1)  # tokens that completions are padded to
    config.max_images = Field(12, low=1)  # images of a step, padded to
    config.max_patches = Field(64, low=1)  # patches that images are padded to
    config.cosine_starts = (0, 550, 950, 1100)  # first steps of the cosines that AdamW's learning rate follows
    config.cosine_peaks = (3e-3, 2e-3, 2e-3, 1.5e-3)  # their peaks; each falls to a twentieth
    config.cosine_lengths = (700, 400, 300, 450)  # steps in which they would; the next cuts one off
    config.warmup = 40  # steps of linear warm-up
    config.weight_decay = 0.05  # of AdamW
    config.log_every = free(10, low=1)  # steps between rows of metrics
    config.checkpoint_every = free(50, low=1)  # steps between checkpoints

    config.shape = Config()
    config.shape.width = Field(128, low=1)  # hidden size of the decoder
    config.shape.mlp = Field(384, low=1)  # inner size of its MLPs
    config.shape.layers = Field(5, low=1)  # decoder layers
    config.shape.heads = Field(4, low=1)  # query heads
    config.shape.kv_heads = Field(2, low=1)  # key and value heads
    config.shape.rope_theta = Field(1e6, above=0)  # base of the rotary frequencies, as in Qwen2-VL
    config.shape.mrope_section = (4, 6, 6)  # rotary frequencies that follow time, height and width
    config.shape.vision_width = Field(64, low=1)  # hidden size of the vision tower
    config.shape.vision_layers = Field(2, low=1)  # its blocks
    config.shape.vision_heads = Field(2, low=1)  # its heads

    if preset == "mini":
        config.start = "runs/pretrain-text/export/model"
        config.describing_steps, config.steps = 700, 1720
        config.pictured_share = 0.5
        config.max_images = 16
        config.reading_steps = config.naming_from = config.naming_until = config.answering_from = 0
        config.answering_until = 0
        config.mixed_from = (700, 1000, 1130, 1200, 1310, 1360, 1620, 1670)
        config.mixed_until = (*config.mixed_from[1:], config.steps)
        config.hasty_shares = (0.85, 0.5, 0.75, 0.25, 0.75, 0.25, 0.5, 0.8)
        config.cosine_starts, config.cosine_peaks, config.cosine_lengths = (
            (0, 700, 1000, 1200, 1360),
            (2e-3, 1e-3, 1.2e-3, 1.5e-3, 1.5e-3),
            (700, 300, 200, 160, 360),
        )
        # Of 16 frequencies, the second follows the row and the third to last the column. In (4, 6, 6) neighbouring
        # columns turn by 0.0002 rad, so that nothing in the decoder tells left from right; text is the same in both.
        config.shape.mrope_section = (1, 1, 14)
    return config
