"""Evaluation (section 5): models on benchmarks, with intervals, paired comparisons and the paper's tables."""

from mmedexpert_jax.config import presets
from mmedexpert_jax.config.fields import Config, Field, free, one_of
from mmedexpert_jax.data.paradigms import NAMES

PRESETS = ("mini", "smollm2", "qwen2_vl_2b", "lingshu_7b", "medgemma_4b", "medgemma_27b")


def get_config(preset: str = "mini") -> Config:
    """Fields of the job under a preset."""
    config = presets.common("evaluate", preset)
    config.compare = ()  # further models, "model" or "name=model", each also against model.path, paired over items
    # model.path and compare take what a job trains on, and "system:NAME", "endpoint:MODEL[@URL]", "transformers:PATH"
    config.benchmarks = ("mmedexpert_mini",)  # name[:subset][@split][=source]; source: a directory, a zip, or "hub"
    config.split = "test"  # split of data.path, for mmedexpert_mini
    # go on without malformed rows, missing images and questions that a model cannot take
    config.skip_broken = free(False)
    config.prompt = ""  # style of the prompt; empty: a registered system's own, else think_answer
    # guideline in the prompt: a paradigm, "all": each that applies, or empty: none
    config.paradigm = one_of("", *NAMES, "all")
    config.num_samples = Field(1, low=1)  # answers per item; from 2 on also a majority vote and pass@k
    config.temperature = 0.0  # of sampling; 0: greedy
    config.top_k = 0  # of sampling; 0: the whole vocabulary
    config.top_p = Field(1.0, above=0, high=1)  # of sampling; 1.0: the whole vocabulary
    config.max_prompt_length = Field(1024, low=1)  # tokens, images included; a longer prompt is refused
    config.max_new_tokens = Field(1024, low=1)  # tokens of an answer; appendix B
    config.batch_size = Field(16, low=1)  # prompts decoded together
    # of the headline: "strict", "medevalkit" or "medxpertqa"; reports show the first two
    config.scorer = one_of("strict", "medevalkit", "medxpertqa")
    # of "blank", "other_image", "question_only", "shuffle", "pairs": a score without looking
    config.controls = one_of("blank", "other_image", "question_only", "shuffle", "pairs", default=(), several=True)
    config.rotations = Field(1, low=1)  # orders of the options that "shuffle" asks beside the file's own
    config.answers = ""  # folder of stored answers, which runs may share; empty: answers/ in the run directory
    config.process = 0  # number of this process among `processes`
    # that share the questions; a run of one process from the same folder asks endpoints and judge, and makes the tables
    config.processes = Field(1, low=1)
    config.report_items = free(2000)  # items of each benchmark that report.html can show; 0: none
    # text for endpoints and judges that may identify a person: "report", "redact", "refuse"
    config.privacy = one_of("report", "redact", "refuse")
    config.endpoint = Config()
    config.endpoint.url = free("")  # of an OpenAI-compatible server, for "endpoint:MODEL" and systems that need one
    config.endpoint.key_env = ""  # environment variable with the server's key; empty: none is sent
    config.endpoint.image_side = Field(1024, low=1)  # pixels; larger images are scaled down
    config.endpoint.concurrency = free(16, low=1)  # requests in flight at most
    config.endpoint.requests_per_minute = free(0)  # 0: no limit
    config.endpoint.tokens_per_minute = free(0)  # prompt and completion; 0: no limit
    config.endpoint.timeout = free(300.0, above=0)  # seconds of one attempt
    config.endpoint.max_attempts = free(8, low=1)  # of one request in a run
    config.endpoint.effort = ""  # reasoning effort, such as "medium"; empty: not sent
    config.endpoint.budget = free(0.0)  # dollars that all attempts may cost; 0: no limit
    config.endpoint.price_input = 0.0  # dollars per million prompt tokens
    config.endpoint.price_output = 0.0  # dollars per million completion tokens
    config.judge = Config()
    config.judge.model = ""  # model that judges answers, by the OpenAI protocol; empty: none
    config.judge.url = free("")  # of its server
    config.judge.key_env = ""  # environment variable with its key; empty: none is sent
    # "open": open questions; "unparsed": those, and answers that strict cannot read; "all"
    config.judge.what = one_of("open", "unparsed", "all")
    config.judge.max_tokens = Field(2048, low=1)  # of a reply, hidden reasoning included
    config.judge.effort = ""  # reasoning effort, such as "medium"; empty: not sent
    config.judge.concurrency = free(16, low=1)  # requests in flight at most
    config.judge.requests_per_minute = free(0)  # 0: no limit
    config.judge.tokens_per_minute = free(0)  # prompt and completion; 0: no limit
    config.judge.timeout = free(300.0, above=0)  # seconds of one attempt
    config.judge.budget = free(0.0)  # dollars; 0: no limit
    config.judge.price_input = 0.0  # dollars per million prompt tokens
    config.judge.price_output = 0.0  # dollars per million completion tokens

    if preset == "mini":
        config.max_prompt_length = 512
        config.max_new_tokens = 96
        config.batch_size = 64
    elif preset == "smollm2":
        config.max_prompt_length = 512
        config.max_new_tokens = 128
    return config
