"""A stand-in for a teacher behind `remote.loopback`: traces of the right form, answers chosen blindly by a hash.

For tests and benchmarks, and to try the factory's endpoints, limits and budgets out without a key.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from mmedexpert_jax.data.paradigms import PARADIGMS
from mmedexpert_jax.data.prompts import render

_OPTION = re.compile(r"^([A-J])\. (.+)$", re.M)


def answer(body: Mapping[str, Any]) -> str:
    """The answer to a prompt of the factory; a function of messages and seed."""
    last = body["messages"][-1]["content"]
    text = last if isinstance(last, str) else last[-1]["text"]
    whole = json.dumps([body["messages"], body.get("seed")])
    options = dict(_OPTION.findall(text))
    letter = sorted(options)[int(hashlib.sha256(whole.encode()).hexdigest()[:8], 16) % len(options)]
    paradigm = next(
        name for name, known in PARADIGMS.items() if known.definition in whole or known.instruction in whole
    )
    return render(trace(paradigm, options, letter), letter)


def trace(paradigm: str, options: Mapping[str, str], letter: str) -> str:
    """A trace without content that makes the moves of its paradigm."""
    chosen, others = options[letter], [text for key, text in options.items() if key != letter]
    if paradigm == "differential":
        excluded = [f"{text} is unlikely: the findings argue against it" for text in others]
        steps = [f"The candidates are {', '.join(options.values())}", *excluded, f"The findings fit {chosen}"]
    elif paradigm == "intuitive":
        steps = ["The findings form one picture", f"This pattern is typical of {chosen}"]
    elif paradigm == "analytical":
        steps = ["The first finding leads to the second", f"Therefore it is {chosen}"]
    else:
        evidence = "Evidence: the first finding raises it, the second finding lowers the others"
        steps = [f"Prior: {others[0]} is common", evidence, f"Posterior: {chosen} is most probable"]
    return " ".join(f"({number}) {step}." for number, step in enumerate(steps, 1))
