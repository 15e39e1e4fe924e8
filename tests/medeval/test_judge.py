"""The verdict that is read in a judge's reply: what a person would say it says."""

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmedexpert_jax.data.case import Case
from mmedexpert_jax.errors import RemoteError
from mmedexpert_jax.medeval.evaluate import Evaluation, judged
from mmedexpert_jax.medeval.judge import judge
from mmedexpert_jax.medeval.judge_verdict import read
from mmedexpert_jax.rollout import Reply

RIGHT = (
    "Let me review the response. Option C is wrong for other reasons.\n\nCORRECT",
    "CORRECT",
    "Correct.",
    "correct",
    "**CORRECT**",
    "`CORRECT`",
    '"CORRECT"',
    "<answer>CORRECT</answer>",
    '{"verdict": "CORRECT"}',
    "Verdict: CORRECT",
    "Final verdict: correct",
    "The response is correct.",
    "The answer is right.",
    "This is correct: both name heart failure.",
    "CORRECT. The response gives B.",
    "INCORRECT... wait, the key says gout, too: CORRECT",
    "CORRECT. Wait, let me check the side: yes, it is correct",
    "CORRECT - an incorrect spelling does not matter",
    "CORRECT\n\nOther options are wrong.",
    "The key is B and the response says B.\nCORRECT",
    "The response gives the correct answer.",
    "True",
    "The spelling differs.\n\n**Correct**",
    "It is without doubt correct.",
    "The response is entirely correct.",
    '{"is_correct": true, "reason": "same disease"}',
    "correct = yes",
    "<think>Is it incorrect? The key says gout, too.</think>CORRECT",
    "Not only is it correct, it is complete.",
    "There is nothing wrong with this response.",
    "The right lung is affected in both, so CORRECT",
    "The answer isn't wrong.",
    '{"verdict": "CORRECT", "reason": "could be worded better"}',
    '{"reason": "it is not another disease, perhaps a synonym", "label": "correct"}',
    "CORRECT: the response claims gout, as the key does.",
    # parts and sides of the body
    "The response names the false vocal cord, as the key does: correct",
    "Both say the left lung, so the response is correct.",
    "CORRECT, both name the right lung",
    "It names the left lung, which is right.",
    "Right. Both say left.",
    "Right\nThe response names gout",
    "The ejection fraction of 30% is correct.",
    "The response is right. The patient had left-sided weakness.",
    "That's right, it matches the key, left MCA.",
    "CORRECT. The distractor A is INCORRECT.",
    "The response is right about the diagnosis.",
    "The response is right and complete.",
    "100% correct",
    "correct: y",
    "✅ CORRECT",
    "CORRECT. The spelling differs; it does not match the key's word for word.",
    # given, in any words
    "Correct answer.",
    "Right response",
    "CORRECT answer",
    "Correct option chosen.",
    "The response identifies the correct diagnosis.",
    "The response provides the correct answer.",
    "It arrives at the correct answer.",
    "The response is equivalent to the correct answer.",
    "The correct answer was given.",
    "Is the response correct? Yes.",
    "Correct? Yes",
    # the two words that were asked for, repeated
    "CORRECT or INCORRECT? CORRECT",
    "Verdict (CORRECT/INCORRECT): CORRECT",
    "Verdict [correct|incorrect]: correct",
    # what hedges the reason, and faults that do not matter
    "CORRECT - nearly identical wording.",
    "CORRECT, as it could also be called gouty arthritis.",
    "The response is correct, even though it has incorrect spelling.",
    "The spelling is wrong but the answer is correct.",
)
WRONG = (
    "INCORRECT",
    "Incorrect.",
    "**INCORRECT**",
    "INCORRECT. The correct answer is heart failure.",
    "INCORRECT: the correct option is B",
    "Incorrect, because the correct diagnosis is asthma.",
    "INCORRECT\nThe correct answer is B.",
    "The response is incorrect. The correct answer is B.",
    "The response is wrong.",
    "The response is not correct.",
    "The response isn't correct.",
    "That is not quite correct.",
    "NOT CORRECT",
    "Not correct",
    "The answer is neither correct nor complete.",
    "Partially correct",
    "The response is partly correct.",
    "Correct, but only partially.",
    "The response might be correct.",
    "Is it correct?",
    "I am unsure whether this is correct.",
    "The response is correct in its first half and incorrect in its second.",
    "CORRECT\nINCORRECT",
    "CORRECT\nWait, actually INCORRECT",
    "CORRECT. Hmm, the side differs, so it is incorrect",
    "The response cannot be considered correct.",
    "The response does not give the correct answer.",
    "False",
    "Verdict: INCORRECT",
    '{"verdict": "incorrect"}',
    "The correct answer is B, the response says C.",
    "It would be correct if the key were C.",
    "The response is far from correct.",
    "It fails to be correct.",
    "Detailed without being correct.",
    "It is less than correct.",
    "Correct in part.",
    "To some extent correct.",
    "The response is arguably correct.",
    '{"correct": false}',
    "is_correct: no",
    "CORRECT: no. INCORRECT: yes.",
    "<think>It seems correct at first.</think>INCORRECT",
    "The response is correct except for the side.",
    "Correct, but incomplete.",
    "The answer is anything but correct.",
    "By no means correct.",
    "It is no longer correct.",
    "Nowhere near correct.",
    "It's correct that the key is B, but the response says C.",
    "Roughly correct",
    "More or less correct.",
    "Semi-correct",
    "not\ncorrect",
    '{"reason": "the key is correct", "verdict": "INCORRECT"}',
    "It is impossible to call this correct.",
    "I would hesitate to call it correct.",
    "I disagree that it is correct.",
    "The student claims it is correct.",
    "The response is wrongly marked correct.",
    "It would have been correct with the left lung.",
    "correct-ish",
    "INCORRECT. The response says left, actually the right lung is affected.",
    "INCORRECT. Actually, the correct side is left.",
    # sides of the body that differ
    "Response: right MCA infarct. Key: left MCA infarct. They do not match.",
    "They don't match: the key says right.",
    "The response gives the wrong side.",
    # taken back behind a begun CORRECT
    "CORRECT. However, it also states a second answer, so INCORRECT.",
    "Correct... no, the response says B. Incorrect overall.",
    "Correct, though the key says otherwise, so INCORRECT",
    # shares, signs, subjects
    "0% correct",
    "50 % correct",
    "CORRECT = N",
    "❌ CORRECT",
    "CORRECT ❌",
    "The key is correct; the response isn't.",
    "I can't say it's correct",
    "Nobody would call this correct",
    "Correct - no",
    "Correct: none",
    "Correct: 0/1",
    "Is it correct? No.",
    "CORRECT or INCORRECT? INCORRECT",
    "The response misses the correct diagnosis.",
    "The response needs the correct dose.",
    "It lacks the correct side",
    "That isn't the correct answer.",
    "It's not a correct response.",
    "un-correct",
)
NOTHING = (
    "",
    " ",
    "I cannot grade this.",
    "Yes",
    "B",
    "corrected",
    "The incorrectness is unclear.",
    "The key says left lung; the response says right lung.",
    "Key: right upper lobe. Response: left upper lobe.",
    "The key is right-sided heart failure; the response gives left-sided heart failure.",
    "Both name the right lung.",
    "Both say true vocal cords.",
    # a judge that cannot say
    "I can't determine whether the response is correct.",
    "I'm sorry, but I can't provide a correct assessment of this.",
    "I'm unable to view the image, so I can't tell if it is correct or incorrect.",
    "I cannot verify if this is correct without the image.",
    "As an AI, I can't say what is right for a patient.",
    "Please provide the correct key.",
    "CORRECT or INCORRECT?",
    # of a part, or of nothing
    "The organ is correct. The side is not.",
    "The organ is correct; the side isn't.",
    "The response is correct on the organ but misses the side.",
    "Zero correct elements.",
    "The question has no correct option.",
    "Correct, possibly.",
)

# JSON by booleans, answers of yes and no beside the verdict, other languages
SAID = (
    ('{"reason": "No contradiction; wrong units are ignored.", "correct": true}', True),
    ('{"answer": "CORRECT", "reason": "does not differ"}', True),
    ('{"answer": "no", "verdict": "CORRECT"}', True),
    ('{"answer": "yes", "key": "no", "correct": false}', False),
    ("{'is_correct': False, 'why': 'correct organ, other side'}", False),
    ("Response: False. Key: False. CORRECT", True),
    ("The response says 'False' and the key is 'No', so CORRECT.", True),
    ("Response: 'True'. Key: 'No'. INCORRECT", False),
    ("It is false that the response is CORRECT.", False),
    ("回答正确。", True),
    ("不正确", False),
    ("正确答案是肝脏", None),
    ("不完全正确", None),
    ("Correcto", True),
    ("Correcto, pero falta el lado", None),
    ("La respuesta es incorrecta.", False),
    ("Richtig", True),
    ("Die Antwort ist nicht richtig.", None),
    ("はい、正解です", True),
    ("不正解です", False),
)


@pytest.mark.parametrize(("reply", "verdict"), SAID)
def test_a_verdict_in_json_beside_answers_or_in_another_language(reply, verdict):
    assert read(reply) is verdict


class Judge:
    """Replies the same to all that it is asked."""

    endpoint = SimpleNamespace(model="thinker")

    def __init__(self, text):
        self.text, self.asked = text, []

    def ask(self, requests):
        self.asked = [request.messages[0]["content"] for request in requests]
        return [SimpleNamespace(text=self.text, finish="length", error="") for _ in requests]


def _asked(judge_, count, response="<think>It may be gout.</think><answer>lupus</answer>"):
    items = {str(n): Case(str(n), "Which?", (), "gout", kind="open") for n in range(count)}
    rows = [row for item in items.values() for row in judged(item, [Reply(response, 1, False)])]
    return judge(judge_, items, Evaluation(tuple(rows)))


def test_a_judge_without_one_verdict_in_eight_replies_is_an_error():
    assert len(_asked(Judge("<think>Hmm"), 7).rows) == 7
    with pytest.raises(RemoteError, match=r"none of 8 replies of thinker .*config\.judge\.max_tokens"):
        _asked(Judge("<think>Hmm"), 8)


def test_a_judge_is_not_sent_the_reasoning():
    _asked(one := Judge("CORRECT"), 1)
    assert "<answer>lupus</answer>" in one.asked[0] and "It may be" not in one.asked[0]


@pytest.mark.parametrize("reply", RIGHT)
def test_right(reply):
    assert read(reply) is True


@pytest.mark.parametrize("reply", WRONG)
def test_wrong(reply):
    assert read(reply) is False


@pytest.mark.parametrize("reply", NOTHING)
def test_no_verdict(reply):
    assert read(reply) is None


@settings(deadline=None)
@given(
    st.sampled_from(("CORRECT", "INCORRECT")),
    st.sampled_from(("{}", "**{}**", "{}.", "Verdict: {}", "`{}`")),
    st.sampled_from(("", "\nThe correct answer is B.", "\nOption A is incorrect, B is correct.", "\n\nSee the key.")),
)
def test_a_first_line_that_is_a_verdict_stands_whatever_the_reason_says(word, form, reason):
    assert read(form.format(word) + reason) is (word == "CORRECT")
