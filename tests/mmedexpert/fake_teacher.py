"""A stand-in teacher: traces of the right form and no content, options chosen blindly, in turn from seed to seed.

`python -m tests.mmedexpert.fake_teacher [port]` serves it as an endpoint of OpenAI's protocol on this machine, to try
the factory's endpoints, limits and budgets out without a key.
"""

import contextlib
import hashlib
import json
import re
import sys
import threading
from collections.abc import Mapping
from typing import Any

from mmedexpert_jax.data.paradigms import PARADIGMS
from mmedexpert_jax.data.prompts import render
from tests.remote.loopback import Loopback

PORT = 8500
_OPTION = re.compile(r"^([A-J])\. (.+)$", re.M)
UNKNOWN = "a common disease"  # said to questions without options
# 34 words, so that each trace keeps the endpoint preset's lower bound of 40.
_FILLER = (
    "The vignette was read from its first sentence to its last, the history before the examination and the "
    "examination before the tests, and nothing that it does not say has been added to what it says"
)


def answer(body: Mapping[str, Any]) -> str:
    """The answer to a prompt of the factory; a function of messages and seed."""
    last = body["messages"][-1]["content"]
    text = last if isinstance(last, str) else last[-1]["text"]
    whole = json.dumps(body["messages"])
    options = dict(_OPTION.findall(text)) or {"": UNKNOWN}
    # In turn, so that as many candidates as there are options surely hold the key, and a try-out builds every case.
    first = int(hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest()[:8], 16)
    letter = sorted(options)[(first + (body.get("seed") or 0)) % len(options)]
    asked = (name for name, known in PARADIGMS.items() if known.definition in whole or known.instruction in whole)
    paradigm = next(asked, "intuitive")  # a prompt that is not the factory's has none
    return render(trace(paradigm, options, letter), letter or UNKNOWN)


def trace(paradigm: str, options: Mapping[str, str], letter: str) -> str:
    """A trace without content that makes the moves of its paradigm, in 40 to 400 words."""
    chosen, others = options[letter], [text for key, text in options.items() if key != letter]
    if paradigm == "differential":
        excluded = [f"{text} is unlikely: the findings argue against it" for text in others]
        steps = [_FILLER, f"The candidates are {', '.join(options.values())}", *excluded, f"The findings fit {chosen}"]
    elif paradigm == "intuitive":
        steps = [_FILLER, "The findings form one picture", f"This pattern is typical of {chosen}"]
    elif paradigm == "analytical":
        steps = [_FILLER, "The first finding leads to the second", f"Therefore it is {chosen}"]
    else:
        evidence = "Evidence: the first finding raises it, the second finding lowers the others"
        first = (others or [chosen])[0]
        steps = [f"Prior: {first} is common", f"{evidence}. {_FILLER}", f"Posterior: {chosen} is most probable"]
    return " ".join(f"({number}) {step}." for number, step in enumerate(steps, 1))


if __name__ == "__main__":
    with (
        contextlib.suppress(KeyboardInterrupt),
        Loopback(answer, port=int(sys.argv[1]) if len(sys.argv) > 1 else PORT) as server,
    ):
        print(f"teacher.url={server.url} teacher.model=stand-in teacher.key_env=", flush=True)
        threading.Event().wait()
