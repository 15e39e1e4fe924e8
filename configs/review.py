"""Review (section 3.2, stage 2): people judge traces on a local page; agreement, Label Studio and Argilla."""

from mmedexpert_jax.config import presets
from mmedexpert_jax.config.fields import Config, Field, one_of

PRESETS = ("mini",)


def get_config(preset: str = "mini") -> Config:
    """Fields of the job under a preset."""
    config = presets.common("review", preset)
    del config.model, config.tracker
    config.data.path = (
        ""  # run directory of the dataset job, or a data set as elsewhere; empty: runs/dataset-<preset>, else "mini"
    )
    config.split = "dev"  # of a data set: "train", "dev", "test" or "all"; a dataset run has none
    # "serve" the page, "report" agreement and coverage, "export" or "import" (exchange.*)
    config.action = one_of("serve", "report", "export", "import")
    config.host = "127.0.0.1"  # address to listen on; anything but loopback is plain HTTP in your network
    config.port = Field(8420, high=65535)  # 0: any that is free
    config.reviewers = ("reviewer",)  # names, each with a link of its own
    config.adjudicators = ()  # names of others, who decide where reviewers differ
    config.overlap = Field(0.2, high=1)  # share of the traces that several reviewers see, for agreement
    config.raters = Field(2, low=1)  # reviewers of each of these traces, as far as there are so many
    config.blind = True  # hide teacher, judge and other reviewers' names; False shows them
    config.exchange = Config()
    # "trail" (verdicts.jsonl, events.jsonl), "label_studio" or "argilla"
    config.exchange.tool = one_of("trail", "label_studio", "argilla")
    config.exchange.path = ""  # file to import; folder to export to, empty: export/ of the workdir
    config.exchange.verdicts = False  # export with the verdicts so far, which annotators there will see
    config.exchange.names = ()  # "theirs=ours": names of the other tool's annotators
    return config
