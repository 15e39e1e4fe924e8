"""Evaluation (section 5): models on benchmarks, with intervals, paired comparisons and the paper's tables."""

from ml_collections import ConfigDict

from mmedexpert_jax.config import presets

PRESETS = ("mini", "smollm2", "qwen2_vl_2b", "lingshu_7b", "medgemma_4b", "medgemma_27b")


def get_config(preset: str = "mini") -> ConfigDict:
    """Fields of the job under a preset."""
    config = presets.common("evaluate", preset)
    config.compare = ()  # further models, "model" or "name=model", each also against model.path, paired over items
    # model.path and compare take what a job trains on, and "system:NAME", "endpoint:MODEL[@URL]", "transformers:PATH"
    config.benchmarks = ("mmedexpert_mini",)  # name[:subset][@split][=source]; source: a directory, a zip, or "hub"
    config.split = "test"  # split of data.path, for mmedexpert_mini
    config.skip_broken = False  # go on without malformed rows, missing images and questions that a model cannot take
    config.prompt = ""  # style of the prompt; empty: a registered system's own, else think_answer
    config.paradigm = ""  # guideline in the prompt: a paradigm, "all": each that applies, or empty: none
    config.num_samples = 1  # answers per item; from 2 on also a majority vote and pass@k
    config.temperature = 0.0  # of sampling; 0: greedy
    config.top_k = 0  # of sampling; 0: the whole vocabulary
    config.top_p = 1.0  # of sampling; 1.0: the whole vocabulary
    config.max_prompt_length = 1024  # tokens, images included; a longer prompt is refused
    config.max_new_tokens = 1024  # tokens of an answer; appendix B
    config.batch_size = 16  # prompts decoded together
    config.scorer = "strict"  # of the headline: "strict", "medevalkit" or "medxpertqa"; reports show the first two
    config.controls = ()  # of "blank", "other_image", "question_only", "shuffle", "pairs": a score without looking
    config.rotations = 1  # orders of the options that "shuffle" asks beside the file's own
    config.answers = ""  # folder of stored answers, which runs may share; empty: answers/ in the run directory
    config.process = 0  # number of this process among `processes`
    config.processes = 1  # that share the questions; the tables are made by a run of one process, from the same folder
    config.report_items = 2000  # items of each benchmark that report.html can show; 0: none
    config.privacy = "report"  # text for endpoints and judges that may identify a person: "report", "redact", "refuse"
    config.endpoint = ConfigDict()
    config.endpoint.url = ""  # of an OpenAI-compatible server, for "endpoint:MODEL" and systems that need one
    config.endpoint.key_env = ""  # environment variable with the server's key; empty: none is sent
    config.endpoint.image_side = 1024  # pixels; larger images are scaled down
    config.endpoint.concurrency = 16  # requests in flight at most
    config.endpoint.requests_per_minute = 0  # 0: no limit
    config.endpoint.tokens_per_minute = 0  # prompt and completion; 0: no limit
    config.endpoint.timeout = 300.0  # seconds of one attempt
    config.endpoint.max_attempts = 8  # of one request in a run
    config.endpoint.effort = ""  # reasoning effort, such as "medium"; empty: not sent
    config.endpoint.budget = 0.0  # dollars that all attempts may cost; 0: no limit
    config.endpoint.price_input = 0.0  # dollars per million prompt tokens
    config.endpoint.price_output = 0.0  # dollars per million completion tokens
    config.judge = ConfigDict()
    config.judge.model = ""  # model that judges answers, by the OpenAI protocol; empty: none
    config.judge.url = ""  # of its server
    config.judge.key_env = ""  # environment variable with its key; empty: none is sent
    config.judge.what = "open"  # "open": open questions; "unparsed": those, and answers that strict cannot read; "all"
    config.judge.concurrency = 16  # requests in flight at most
    config.judge.budget = 0.0  # dollars; 0: no limit
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
