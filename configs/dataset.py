"""Data factory (section 3): raw clinical cases to reasoning traces, filtered, reviewed, stratified and split."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from mmedexpert_jax.config import presets

PRESETS = ("mini", "smollm2", "endpoint")


def get_config(preset: str = "mini") -> ConfigDict:
    """Fields of the job under a preset: "mini" and "smollm2" need no key and no network, "endpoint" a served model."""
    config = presets.common("dataset", "mini" if preset == "endpoint" else preset)
    config.preset = preset
    config.stages = ("collect", "trace", "filter", "judge", "build")  # stages to run, each alone or several
    config.limit = 0  # cases kept at most, specialties in turn; 0: all
    config.answers = ""  # SQLite file of answers, which runs may share; empty: factory.sqlite of the run

    # collection (section 3.1)
    config.data.path = "embedded"  # raw cases: files or directories, commas between; "<format>=<path>" forces a format
    config.data.image_dir = ""  # folder of images: by name, or all in <image_dir>/<id of the row>
    config.data.licences = ()  # "format=licence" or "file name=licence": stand before the formats' own
    config.data.redistributable = ()  # formats or file names whose rows may be passed on
    config.data.restricted = ()  # formats or file names whose rows may not
    config.data.privacy = "report"  # text that may identify a person: "report", "redact" or "refuse" the row
    config.data.max_rejected = 0.5  # share of refused rows above which the run stops
    config.benchmarks = ("mmedexpert_mini",)  # test sets to keep out: name[:subset][@split][=source], or "all=<folder>"
    config.duplicates = 0.8  # Jaccard overlap of word 5-grams from which two cases with one answer are the same
    config.votes = False  # let the teacher vote on the specialty (section 3.3): two votes, a third breaks a tie

    # traces (section 3.2)
    config.paradigm_policy = "balanced"  # one paradigm a case, in "balance", or "all" that apply; not in the paper
    config.candidates = 4  # traces asked for at most, until one passes stage 1; not given in the paper
    config.words = (40, 400)  # bounds of a trace's length; not given in the paper

    # who writes them
    config.teacher = ConfigDict()
    config.teacher.kind = "chat"  # "chat" or "batch": an endpoint of OpenAI's protocol; "local": model.path, in process
    config.teacher.url = ""  # base of the endpoint, such as https://api.openai.com/v1 or http://localhost:8000/v1
    config.teacher.model = ""  # name that the endpoint serves
    config.teacher.key_env = "OPENAI_API_KEY"  # environment variable that holds the key; empty: none is sent
    config.teacher.prompt = "full"  # "full": rules and worked examples; "short": the one that our models are trained on
    config.teacher.max_tokens = 4096  # of an answer, hidden reasoning included
    config.teacher.temperature = placeholder(float)  # of sampling; none: the server's own
    config.teacher.seed = placeholder(int)  # sent plus the candidate's number, by default from 0; none: none is sent
    config.teacher.seed = 0
    config.teacher.effort = ""  # reasoning effort, such as "medium"; empty: none is sent
    config.teacher.image_side = 1024  # pixels; longer sides of images are scaled down to it
    config.teacher.concurrency = 32  # requests in flight
    config.teacher.requests_per_minute = 0  # 0: no limit
    config.teacher.tokens_per_minute = 0  # prompt and completion; 0: no limit
    config.teacher.timeout = 300.0  # seconds for one attempt
    config.teacher.max_attempts = 8  # for one request in one run
    config.teacher.retry_wait = 1.0  # seconds before the first retry; doubles up to 60
    config.teacher.budget = 0.0  # dollars that all attempts in the store may cost; 0: no limit
    config.teacher.price_input = 0.0  # dollars per million prompt tokens
    config.teacher.price_cached = placeholder(float)  # the same, read from the server's cache; none: as price_input
    config.teacher.price_output = 0.0  # dollars per million completion tokens
    config.teacher.batch_discount = 0.5  # factor on the prices of the Batch API; as OpenAI publishes
    config.teacher.batch_size = 64  # conversations decoded together by a local model
    config.teacher.max_prompt_length = 1024  # tokens that a local model reads; longer is refused

    # who judges them
    config.judge = ConfigDict()
    config.judge.kind = ""  # "chat" or "batch"; empty: no judge. Its score orders the review and decides nothing
    config.judge.url = ""  # base of its endpoint
    config.judge.model = ""  # name that the endpoint serves
    config.judge.key_env = "OPENAI_API_KEY"  # environment variable that holds the key; empty: none is sent
    config.judge.max_tokens = 1024  # of a judgement, hidden reasoning included
    config.judge.effort = ""  # reasoning effort; empty: none is sent
    config.judge.concurrency = 32  # requests in flight
    config.judge.requests_per_minute = 0  # 0: no limit
    config.judge.tokens_per_minute = 0  # 0: no limit
    config.judge.budget = 0.0  # dollars that all attempts in the store may cost, the teacher's included; 0: no limit
    config.judge.price_input = 0.0  # dollars per million prompt tokens
    config.judge.price_output = 0.0  # dollars per million completion tokens

    # build (section 3.3)
    config.reviewed = "any"  # traces to build: "accepted" by people alone, or "any" that they have not rejected
    config.dev_share = 0.1  # of the cases of each specialty, for choices; not given in the paper
    config.test_share = 0.1  # likewise, for reports
    config.include_restricted = False  # put rows that may not be passed on into export/public as well
    config.push_to = ""  # "owner/name" on the Hugging Face hub to which export/public is uploaded; empty: nowhere

    if preset == "endpoint":
        del config.model
        return config
    config.words = (8, 200)
    config.teacher.kind = "local"
    config.teacher.temperature = 0.7
    config.teacher.max_tokens = 96
    config.teacher.prompt = "short"
    if preset == "smollm2":  # without the worked examples it hardly ever keeps to the format
        config.teacher.prompt = "full"
        config.teacher.temperature = 0.3
        config.teacher.max_tokens = 256
        config.teacher.max_prompt_length = 1792
    return config
