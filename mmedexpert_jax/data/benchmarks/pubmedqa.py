"""PubMedQA (Jin et al. 2019), the 500 expert-labelled test questions: yes, no or maybe from an abstract.

Two distributions: MedEvalKit's (rows with a `data` object of Question, Context, Options, Correct Option), and the
authors' pqa_labeled (pubid, question, context, final_decision; all 1,000, of which 500 are the test part).
"""

from collections.abc import Mapping

from mmedexpert_jax.data.benchmarks import rows
from mmedexpert_jax.data.benchmarks.reading import reader
from mmedexpert_jax.data.benchmarks.source import Files
from mmedexpert_jax.data.case import Case

DECISIONS = ("yes", "no", "maybe")


@reader(
    "pubmedqa",
    "PubMedQA",
    files={"test": ("test-*.parquet", "test.jsonl"), "labeled": ("train-*.parquet", "pqa_labeled.jsonl")},
    subsets=("test", "labeled"),
    hub="openlifescienceai/pubmedqa",
    hub_files={"test": "data/test-*.parquet"},
    expects="test-00000-of-00001.parquet (test), or pqa_labeled's train-*.parquet (labeled)",
    strata=("decision",),
    published=lambda split, subset: {"items": {"test": 500, "labeled": 1_000}[subset]},
    licence="MIT (hub card of qiaojin/PubMedQA)",
)
def _benchmark(row: rows.Row, files: Files, subset: str) -> Case:
    kit = row.values.get("data")
    if isinstance(kit, Mapping):
        row = rows.Row({**kit, "id": row.values.get("id")}, row.where, row.number)
        question, options, context = row.text("Question"), row.values.get("Options"), row.values.get("Context")
        answer = row.letter(3, "Correct Option")
        texts = tuple(str(options.get(letter, "")) for letter in "ABC") if isinstance(options, Mapping) else ()
    else:
        question, context, texts = row.text("question"), row.values.get("context"), DECISIONS
        context = context.get("contexts") if isinstance(context, Mapping) else context
        decision = row.text("final_decision").lower()
        if decision not in DECISIONS:
            raise row.bad("final_decision", f"{decision!r} is not among {', '.join(DECISIONS)}")
        answer = "ABC"[DECISIONS.index(decision)]
    if not all(texts) or len(texts) != 3:
        raise row.bad("Options", "three texts under A, B and C are needed")
    if not isinstance(context, list) or not all(isinstance(part, str) for part in context):
        raise row.bad("Context", "a list of texts is needed")
    abstract = "\n".join(context)
    return Case(
        id=row.label("id", "pubid") or str(row.number),
        question=f"Context: {abstract}\n{question}",
        options=texts,
        answer=answer,
        labels={"decision": texts["ABC".index(answer)].lower()},
    )
