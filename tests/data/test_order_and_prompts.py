"""Data order as a pure function, prompts as text, and the structure that each paradigm asks for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmedexpert_jax.answers import choice
from mmedexpert_jax.data import PARADIGMS, Case, load_cases
from mmedexpert_jax.data.order import batch_indices
from mmedexpert_jax.data.paradigms import PARADIGMS as RULES
from mmedexpert_jax.data.paradigms import statements
from mmedexpert_jax.data.prompts import completion, conversation
from mmedexpert_jax.errors import ConfigError, DataError
from mmedexpert_jax.models import load_model

# The examples of the paper's appendix A, abridged.
TRACES = {
    "differential": "(1) The lesion is round, favoring benignity. (2) Phyllodes tumor: typically larger. "
    "(3) Invasive carcinoma: spiculated margins, absent here. (4) Fibroadenoma matches best.",
    "intuitive": "(1) A smooth, oval mass is intuitively recognized as benign. (2) Common benign lesion in this "
    "pattern is fibroadenoma.",
    "analytical": "(1) Malignancies induce desmoplasia → spiculation (absent). (2) Intraductal lesions form cysts: not "
    "seen. (3) Benign stromal proliferation gives a smooth nodule.",
    "bayesian": "(1) Prior: fibroadenoma most common. (2) Evidence: smooth border increases P(benign). "
    "(3) Posterior: highest for fibroadenoma.",
}
OPTIONS = ("Phyllodes tumor", "Invasive carcinoma", "Fibroadenoma")


@given(st.integers(1, 50), st.integers(1, 20), st.integers(0, 5))
def test_every_epoch_visits_each_case_once(count, batch, seed):
    steps = -(-3 * count // batch)
    seen = np.concatenate([batch_indices(count, batch, step, seed) for step in range(steps)])
    for epoch in range(3):
        assert sorted(seen[epoch * count : (epoch + 1) * count]) == list(range(count))


@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_the_papers_examples_follow_their_own_paradigm(paradigm):
    assert RULES[paradigm].follows(TRACES[paradigm], OPTIONS)


@pytest.mark.parametrize(
    ("paradigm", "trace"),
    [
        ("differential", TRACES["bayesian"]),
        ("intuitive", TRACES["bayesian"]),
        ("analytical", TRACES["bayesian"]),
        ("bayesian", TRACES["analytical"]),
        ("bayesian", "(1) Posterior first. (2) Evidence raises it. (3) Prior last."),
        ("differential", "Phyllodes tumor is excluded, Fibroadenoma matches."),
        ("intuitive", "(2) A typical pattern. (1) Classic."),
        ("analytical", ""),
    ],
)
def test_other_forms_do_not(paradigm, trace):
    assert not RULES[paradigm].follows(trace, OPTIONS)


@pytest.mark.parametrize(
    ("paradigm", "trace", "follows"),
    [
        ("analytical", "(1) The artery closes, so the posterior wall dies. (2) Therefore troponin rises.", True),
        ("analytical", "(1) The head turned, so it was occiput posterior. (2) Hence the long labour.", True),
        ("analytical", "(1) The artery closes, so the wall dies. (2) Hence the posterior rises to 80%.", False),
        ("intuitive", "(1) A man with a prior infarction. (2) The typical picture of heart failure.", True),
        ("intuitive", "(1) A prior MI. (2) The typical picture of a posterior STEMI.", True),
        ("intuitive", "(1) He smoked prior to admission. (2) The picture is typical.", True),
        ("intuitive", "(1) The typical picture. (2) A high prior for failure.", False),
        ("bayesian", "(1) A prior stroke. (2) The evidence raises concern. (3) The posterior artery.", False),
        ("bayesian", "(1) The prior is 10%. (2) The evidence raises it. (3) The posterior strongly favours it.", True),
        ("bayesian", "(1) Prior: 20%. (2) Hypoxia raises it. (3) The posterior reaches 80%.", True),
        ("bayesian", "(1) The prior based on prevalence is 20%. (2) Hypoxia raises it. (3) Posterior PE 80%.", True),
        ("intuitive", "(1) The classic picture. (2) The posterior reaches 80%.", False),
        ("bayesian", "(1) Prior: Occiput posterior is rare. (2) Pain raises it. (3) Posterior odds: high.", True),
    ],
)
def test_prior_and_posterior_count_where_they_are_probabilities(paradigm, trace, follows):
    assert RULES[paradigm].follows(trace, ("Occiput posterior", "Breech")) is follows


@pytest.mark.parametrize(
    ("options", "trace", "named"),
    [
        (("MS", "ALS"), "(1) The symptoms began with false steps. (2) A reflex is absent.", False),
        (("MS", "ALS"), "(1) MS is unlikely. (2) It is ALS.", True),
        (("class I", "class II"), "(1) Class II is excluded. (2) No more is known.", False),
        (("0", "3"), "(1) 80 of 32 are absent. (2) So it is.", False),
        (("Beta blocker", "Statin"), "(1) Beta blockers are excluded. (2) Statins fit.", True),
        (("痛风", "关节炎"), "(1) 可能是痛风或关节炎。 (2) 排除痛风。", True),
        (("T-cell lymphoma", "Crohn's disease"), "(1) T\u2011cell lymphoma is absent. (2) Crohn’s disease fits.", True),
        (("5 µg", "10–20 mg"), "(1) 5\xa0μg is excluded. (2) 10-20 mg fits.", True),
        (("pulmonary embolism", "CO2 retention"), "(1) Pulmonary\nembolism is absent. (2) CO₂ retention fits.", True),
    ],
)
def test_options_are_named_by_whole_words(options, trace, named):
    assert RULES["differential"].follows(trace, options) is named


def test_statements_must_count_up_from_one():
    assert statements("(1) a (2) b") == ["a", "b"]
    assert statements("(1) Age (65) is a point (2019). (2) So") == ["Age (65) is a point (2019).", "So"]
    assert statements("(1) a (13) b. (0) c (2) d") == ["a (13) b. (0) c", "d"]
    many = "".join(f"({n}) x" for n in range(1, 15))
    assert statements(many) == ["x"] * 14 and statements("(1) grade (2) b. (2) c") == []
    assert statements("(1) a (3) b") == statements("(1) (2) b") == statements("none") == []


@pytest.mark.parametrize("paradigm", [None, *PARADIGMS])
def test_the_prompt_holds_question_options_and_only_its_own_paradigm(paradigm):
    case = Case("i", "Which lesion?", OPTIONS, "C", "CSI", "x", paradigm="bayesian", trace=TRACES["bayesian"])
    (turn,) = conversation(case, paradigm)
    text = turn["content"][0]["text"]
    assert text.startswith("Which lesion?\nA. Phyllodes tumor\nB. Invasive carcinoma\nC. Fibroadenoma\n")
    assert [name for name in PARADIGMS if RULES[name].instruction in text] == ([paradigm] if paradigm else [])
    assert choice(completion(case), OPTIONS) == "C"


def test_images_and_guideline_stand_where_they_belong():
    from PIL import Image

    case = Case("i", "Q?", ("a", "b"), "A", "BS", "x", images=(Image.new("RGB", (4, 4)),) * 2)
    (turn,) = conversation(case, "analytical", guideline="Guideline: a before b.")
    assert [part["type"] for part in turn["content"]] == ["image", "image", "text"]
    text = turn["content"][-1]["text"]
    assert text.index("B. b") < text.index("Guideline: a before b.") < text.index("Use analytical reasoning")


def test_a_paradigm_and_a_model_that_are_none_are_refused_by_name():
    case = load_cases("mini", "dev", limit=1)[0]
    with pytest.raises(ConfigError, match="no paradigm 'Bayesian'; choose one of differential"):
        conversation(case, paradigm="Bayesian")
    with pytest.raises(DataError, match="the name of the model is empty"):
        load_model("")
