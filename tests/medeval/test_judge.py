"""The verdict that is read in a judge's reply: what a person would say it says."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmedexpert_jax.medeval.judge import read

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
)


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
