"""Data factory (section 3): raw clinical cases to reasoning traces, filtered, reviewed, stratified and split."""

from ml_collections.config_dict import placeholder

from mmedexpert_jax.config import presets
from mmedexpert_jax.config.fields import Config, Field, free, one_of

PRESETS = ("mini", "smollm2", "endpoint")


def get_config(preset: str = "mini") -> Config:
    """Fields of the job under a preset: "mini" and "smollm2" need no key and no network, "endpoint" a served model."""
    config = presets.common("dataset", "mini" if preset == "endpoint" else preset)
    config.preset = preset
    stages = ("collect", "trace", "filter", "judge", "build")
    config.stages = one_of(*stages, default=stages, several=True, resume="free")  # stages to run, each alone or several
    config.limit = 0  # cases kept at most, specialties in turn; 0: all
    config.answers = ""  # SQLite file of answers, which runs may share; empty: factory.sqlite of the run

    # collection (section 3.1)
    config.data.path = "embedded"  # raw cases: files or directories, commas between; "<format>=<path>" forces a format
    config.data.image_dir = ""  # folder of images: by name, or all in <image_dir>/<id of the row>
    config.data.licences = ()  # "format=licence" or "file name=licence": stand before the formats' own
    config.data.redistributable = ()  # formats or file names whose rows may be passed on
    config.data.restricted = ()  # formats or file names whose rows may not
    # text that may identify a person: "report", "redact" or "refuse" the row
    config.data.privacy = one_of("report", "redact", "refuse")
    config.data.max_rejected = Field(0.5, high=1)  # share of refused rows above which the run stops
    config.benchmarks = ("mmedexpert_mini",)  # test sets to keep out: name[:subset][@split][=source], or "all=<folder>"
    # Jaccard overlap of word 5-grams from which two cases with one answer are the same
    config.duplicates = Field(0.8, above=0, high=1)
    config.votes = False  # let the teacher vote on the specialty (section 3.3): two votes, a third breaks a tie

    # traces (section 3.2)
    config.paradigm_policy = one_of("balanced", "all")  # one paradigm a case, or all that apply; not in the paper
    config.candidates = Field(4, low=1)  # traces asked for at most, until one passes stage 1; not given in the paper
    config.words = (40, 400)  # bounds of a trace's length; not given in the paper

    # who writes them
    config.teacher = Config()
    # "chat" or "batch": an endpoint of OpenAI's protocol; "local": model.path, in process
    config.teacher.kind = one_of("local", "chat", "batch", default="chat")
    config.teacher.url = free("")  # base of the endpoint, such as https://api.openai.com/v1 or http://localhost:8000/v1
    config.teacher.model = ""  # name that the endpoint serves
    config.teacher.key_env = "OPENAI_API_KEY"  # environment variable that holds the key; empty: none is sent
    # "full": rules and worked examples; "short": the one that our models are trained on
    config.teacher.prompt = one_of("full", "short")
    config.teacher.max_tokens = Field(4096, low=1)  # of an answer, hidden reasoning included
    config.teacher.temperature = placeholder(float)  # of sampling; none: the server's own
    config.teacher.seed = placeholder(int)  # sent plus the candidate's number, by default from 0; none: none is sent
    config.teacher.seed = 0
    config.teacher.effort = ""  # reasoning effort, such as "medium"; empty: none is sent
    config.teacher.image_side = Field(1024, low=1)  # pixels; longer sides of images are scaled down to it
    config.teacher.concurrency = free(32, low=1)  # requests in flight
    config.teacher.requests_per_minute = free(0)  # 0: no limit
    config.teacher.tokens_per_minute = free(0)  # prompt and completion; 0: no limit
    config.teacher.timeout = free(300.0, above=0)  # seconds for one attempt
    config.teacher.max_attempts = free(8, low=1)  # for one request in one run
    config.teacher.retry_wait = free(1.0, above=0)  # seconds before the first retry; doubles up to 60
    config.teacher.budget = free(0.0)  # dollars that all attempts in the store may cost; 0: no limit
    config.teacher.price_input = 0.0  # dollars per million prompt tokens
    config.teacher.price_cached = placeholder(float)  # the same, read from the server's cache; none: as price_input
    config.teacher.price_output = 0.0  # dollars per million completion tokens
    config.teacher.batch_discount = Field(0.5, high=1)  # factor on the prices of the Batch API; as OpenAI publishes
    config.teacher.batch_size = Field(64, low=1)  # conversations decoded together by a local model
    config.teacher.max_prompt_length = Field(1024, low=1)  # tokens that a local model reads; longer is refused

    # who judges them
    config.judge = Config()
    # "chat" or "batch"; empty: no judge. Its score orders the review and decides nothing
    config.judge.kind = one_of("", "chat", "batch")
    config.judge.url = free("")  # base of its endpoint
    config.judge.model = ""  # name that the endpoint serves
    config.judge.key_env = "OPENAI_API_KEY"  # environment variable that holds the key; empty: none is sent
    config.judge.max_tokens = Field(1024, low=1)  # of a judgement, hidden reasoning included
    config.judge.effort = ""  # reasoning effort; empty: none is sent
    config.judge.concurrency = free(32, low=1)  # requests in flight
    config.judge.requests_per_minute = free(0)  # 0: no limit
    config.judge.tokens_per_minute = free(0)  # 0: no limit
    # dollars that all attempts in the store may cost, the teacher's included; 0: no limit
    config.judge.budget = free(0.0)
    config.judge.price_input = 0.0  # dollars per million prompt tokens
    config.judge.price_output = 0.0  # dollars per million completion tokens

    # build (section 3.3)
    config.reviewed = one_of("any", "accepted", resume="free")  # traces that people have not rejected, or accepted
    config.dev_share = Field(0.1, high=1)  # of the cases of each specialty, for choices; not given in the paper
    config.test_share = Field(0.1, high=1)  # likewise, for reports
    # put rows that may not be passed on into export/public as well; never those whose texts may identify a person
    config.include_restricted = free(False)
    config.push_to = free("")  # "owner/name" on the Hugging Face hub to which export/public is uploaded; empty: nowhere

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
