"""docs/reproduction.md, written from a sweep of configs/ablation.py; no table on the page is typed.

    python docs/reproduce.py runs/ablation-mini ["How it was run"]

keeps the sweep's result in docs/results/ablation.json and writes the page and its images, which docs/figures.py does
again whenever it is run, with the tables of further settings from docs/results. With `--keep pairs` the sweep has some
rows over more seeds, for the table of how many seeds.
"""

import argparse
import hashlib
import json
import runpy
from pathlib import Path
from typing import Any

from mmedexpert_jax import __version__
from mmedexpert_jax.data.embedded.tokenizer import MINI
from mmedexpert_jax.launch import ablation_result, load_config, table3

DOCS = Path(__file__).resolve().parent
RESULTS = DOCS / "results"
TITLE = "# The paper's ablations here\n"
HEAD = """
Table 3 and Figure 3 over seeds, on a model and data set of this package:

```sh
{command} --plan  # stages left, and their time
{command}
python docs/reproduce.py runs/ablation-{preset}  # writes this page
```

Every stage (an expert, a merge, a policy, an evaluation) is a run in a directory named by a hash of the fields, the
seed and the stages that it depends on. What two rows need is made once; the same command goes on after a kill; a
changed field makes anew what depends on it and nothing else. `rows="Base,GRPO,GBA"` asks for some rows,
`rivals=last` replaces TIES in the last merge alone, `stages=FOLDER` shares stages among sweeps.

Sweeps over one folder of stages may run at once, each with seeds of its own: where two need the same stage (the base's
evaluations), one makes it and the other waits. On two cores this pays, since a step uses a second core only in part:
ten steps of `configs/gba.py:mini` took 49 s on two cores and 69 s on one, so that two sweeps with a core each take 0.7
of the time of one with both. The last command finds all stages done and writes the result over all seeds:

```sh
sweep="mmedexpert ablation:{preset} stages=runs/stages"
taskset -c 0 $sweep workdir=runs/a seeds=0,1,2 &
taskset -c 1 $sweep workdir=runs/b seeds=3,4 &
wait
$sweep seeds=0,1,2,3,4
```

`configs/ablation.py:omnimedvqa` is the job of Table 4: GBA on 1,000 items of OmniMedVQA, evaluated on those that share
no image with them.

"""
VERSIONS = ("jax", "jaxlib", "numpy")
EARLIER = """\
**On an earlier embedded model and with other rewards.** `rewards.format` and `rewards.structure` of
configs/gba.py weighed 0.5 each, and weigh 0.2 now. These tables were made with weights of SHA-256 {weights}...,
those of `configs/pretrain.py:text`, and with pictures that had no colours by place: images were not
learned then, by any row. Those that ship now ({shipped}...) go on from them
(`configs/pretrain.py:mini`), so that the command above gives other numbers today.

"""
SETTINGS = """
## Rewards, objectives and rates

GBA under other settings against the default of `configs/gba.py:mini`, 48 steps from the base model each. Held out: the
1,280 cases of the test split, prompts without guideline, one answer each, sampled at temperature 1 as in training, and
greedily. Gains are paired over cases, the seeds of a case kept together; the interval over seeds is Student's t. The
benchmark and its control with shuffled rewards are in [Benchmarks](benchmarks.md#does-gba-learn-benchmarkslearningpy),
what to set in [Recipes](recipes.md). No comparison is corrected for their number. The runs were made beside much other
work. All were made before the reward for structure looked for options as whole words, which gives one of 1,760 kept
completions under the differential paradigm another reward, but for these of the table of objectives: DAPO, PAPO and
DRPO with seed 1, all but GRPO, RLOO and REINFORCE++ with seed 2, and all but GRPO with seed 3.

### Rewards, rollouts a step ahead

The paper gives the rewards no weights. With 1 for accuracy and 0.5 each for format and structure, the default until
2026-11-30, a right answer without reasoning ties with a wrong one in full form. Today's default, 0.2 for each of form,
is the base of comparison. Runs of 0.5 were made on 2026-11-29 and 30 with their weights set by hand or by the default
of then, and two of GBA likewise.

<!-- figure: against -->
<!-- end -->

![GBA on-policy and with rollouts a step ahead](images/learning_ahead.png)

Smaller weights, and form that counts only for right answers, break the tie and cost nothing that is seen on `mini`;
smaller weights became the default, since gated rewards are all 0, and teach no form, as long as a model has no right
answer. Normalising each reward by itself (`objective=gdpo`) gains about a point greedily in all three forms over items
(at weights of 0.5 its advantages of the very tie are 0), and over seeds at today's weights; it replaces equation 4, so
it stays an objective of its own. Rollouts a step ahead, corrected by capped importance weights, learn as much as those
of the policy itself.

### GRPO, and the reward for structure

GRPO trains on the plain prompts that the held-out cases have, without a reward for structure. The first table takes its
two differences from GBA apart, the second has more seeds. The runs of GBA and GRPO in the first, made anew, came out
with the accuracies of those above, run by run.

<!-- figure: structure -->
<!-- end -->

"GBA outperforms GRPO" is not what `mini` shows: sampled, GRPO is ahead of GBA, over seeds narrowly; greedily neither
is. Three quarters of its lead on five seeds are the prompts. The rest is the reward for structure: without it GBA gains
greedily, surely over items and not over seeds. GRPO with that reward is GRPO, byte for byte (seeds 0 and 1): a plain
prompt names no paradigm, so that every answer has 0 for it. The three further seeds, made later, have no lead of GRPO
sampled, so that five had shown too much of it. After 24 steps, greedily and over 16 seeds, GBA, GBA without the reward
for structure and GRPO are within a point of each other by both intervals ([how many seeds](#how-many-seeds)).

### Objectives

<!-- figure: objectives -->
<!-- end -->

None is surely better than GRPO: DAPO, sampled, is above it over seeds and not over items. DRPO, whose weights are meant
for specialties of unlike numbers, which these are not, is below it sampled, over items and over seeds; GSPO, sampled
and greedily, over items; PAPO, sampled, over seeds. Of eighteen comparisons one or two such intervals without 0 are
what chance gives. On one and two seeds CISPO and DAPO had seemed 1.7 and 2.4 points ahead, and on three REINFORCE++ and
DAPO to be ahead greedily.

### Single terms of the objective

GBA with the standard deviation of the whole batch in the place of the group's (`advantage_scale=batch`), an entropy
bonus (`entropy_coef=0.001`), the reference of the KL made anew (`ref_every=16`), and advantages weighted by specialty
(`advantage_weights=specialty`), one at a time. The runs of GBA were made anew for this table, with the reward for
structure of today, and end within 1.4 points of those of the other tables, seed by seed: so much does one reward of
another value change.

<!-- figure: terms -->
<!-- end -->

Scaling by the batch gains a point greedily, over items and over seeds, on three seeds and, made because of these, on
five; sampled it leans the same way and is not settled. Equation 4 divides by the group's, which stays the default. The
other three are not told apart from the default. The specialties of `mini` are equal in number, so that weights by
specialty have little to do here.

### Learning rate

<!-- figure: rates -->
<!-- end -->

The default of 1.5e-3 was left, since every figure of the demo stands on it.
"""
SEEDS = """
## How many seeds

The first five seeds of the ablation, and the first eight of GBA beside GRPO at 48 steps, left these comparisons open,
or nearly. Over items the ablation's had half-widths below one point with those seeds: the command above asks all 1,280
(`questions=0`), where the preset asks 400, with half-widths 1.8 times as wide. Over seeds most had not. How many seeds
that takes was said here on 2026-11-30, before any further one was made, from the standard deviation of the difference
over those seeds, by Student's t. Then they were made, for GBA and GRPO by

```sh
{command}
```

{made}<!-- figure: power -->
<!-- end -->

With these seeds no half-width over items is above one point, nor over seeds, but for merging beside mixing (1.01, an
interval without 0), for the two of 48 steps, which have no more seeds than before, and for GBA beside the merged
experts that it starts from (1.4, without 0). GRPO on merged experts was no row when the plan was made: its two
comparisons were made on all seven seeds at once, and what the table plans for them was not followed. Whatever GBA adds
to GRPO at 24 steps on `mini` is below one point. A standard deviation of five seeds is itself known to a factor of 0.6
to 2.9 only, so that the numbers of seeds were plans. The other settings of GBA stand on three to five seeds. Most of
their intervals over seeds are wider than a point to each side, and a few over items; more were not made.
"""
LOOKING = """
## Images

What the weights that ship make of it today, with curves by modality, is in
[Benchmarks](benchmarks.md#does-it-look-benchmarkslookingpy), the commands of their recipe in
[Models](models.md#how-the-embedded-model-is-made). How they came about:

Until 2026-11-29 the embedded model hardly looked: its tower was trained on some 7,000 pictures, the decoder's
frequencies of columns turned by 0.0002 rad from one to the next, and a tower of Qwen2-VL knows no absolute places, so
that a level on a chart could not be told from another. `configs/pretrain.py:mini` goes on from there with 33,600
described pictures, whose places have colours of their own, and with frequencies that tell columns apart; then with
cases. The probability of a whole description of an unseen picture rose, in 700 steps, to 0.99 for burns, 0.98 for
brain MR (the subject of training), 0.79 for growth charts, 0.66 for chest CT, 0.47 for the ECG and 0.11 for
audiograms. What is read last decides what GBA makes of it (seed 0, the test split sampled): after 300 steps with 85 %
hasty notes, images 36.8 to 39.4 % and text 37.0 to 54.3 %; after 200 more with 50, then 75 %, images 39.1 to 51.8 and
text 41.9 to 59.8; after 160 more with 25, then 75 %, images 39.1 to 52.6 and text 45.5 to 68.7; after 360 more with
25, then 50, then 80 %, which ship, images 42.6 to 57.1 and text 45.0 to 73.9. Over seeds 0, 1 and 2, with the
rewards of then, images 42.6 to 59.6 % (+17.0 [+11.6, +22.5]), text 45.0 to 73.5 % (+28.5 [+25.0, +31.9]); with
another case's picture 19.4 %
of the image cases before and 21.3 % after (chance 23.3). The weights from before pictures were described take text
from 42.9 to 73.1 % and leave images at chance. 70 more steps with 85 %, tried as well, lowered what GBA reaches (text
68.9, images 56.5). All of these choices were made by seed 0 on the test split, so that its figures flatter a little;
seeds 1 and 2 played no part in them.
"""


def shipped() -> str:
    """First digits of the SHA-256 of the embedded model's weights."""
    return hashlib.sha256((MINI / "model.safetensors").read_bytes()).hexdigest()[:16]


def keep(run: Path, name: str, how: str = "") -> None:
    """Keeps the result of a sweep under a name, with date, hardware and versions, and how it was run."""
    result = json.loads((run / ablation_result.RESULT).read_text())
    status, environment = (json.loads((run / name).read_text()) for name in ("STATUS.json", "env.json"))
    result["made"] = {
        "how": how,
        "date": status["updated"][:10],
        "package": __version__,
        "weights": shipped(),
        "python": environment["python"],
        "cpus": environment["cpus"],
        "devices": environment.get("devices", []),
        **{name: environment["versions"].get(name) for name in VERSIONS},
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def page(ablation: dict[str, Any], pairs: dict[str, Any]) -> str:
    """The text of docs/reproduction.md, with blocks whose tables are still to be written.

    Args:
        ablation: the result of a sweep of all rows.
        pairs: of one of some rows over more seeds.
    """
    about = made_with(ablation)
    if ablation["made"]["weights"] != shipped():
        about += EARLIER.format(weights=ablation["made"]["weights"], shipped=shipped())
    head = HEAD.format(command=command(ablation), preset=ablation["preset"])
    seeds = SEEDS.format(command=command(pairs), made=made_with(pairs))
    return TITLE + head + about + ablation_result.page(ablation, images="images") + SETTINGS + seeds + LOOKING


def command(result: dict[str, Any]) -> str:
    """The command of a sweep."""
    preset, seeds = result["preset"], ",".join(map(str, result["seeds"]))
    text = f"mmedexpert ablation:{preset} seeds={seeds}"
    if len(result["rows"]) < len(table3.rows()):
        text += f' rows="{",".join(row["name"] for row in result["rows"])}"'
    questions = load_config(f"configs/ablation.py:{preset}").questions
    if questions and result["items"]["greedy"] > questions:
        text += " questions=0"
    if result["price"]:
        text += f" price={result['price']:g}"
    return text


def made_with(result: dict[str, Any]) -> str:
    """A paragraph: when, on which hardware and with which versions a sweep was run, and how long."""
    made = result["made"]
    devices = ", ".join(made["devices"])
    versions = ", ".join(f"{name} {made[name]}" for name in VERSIONS)
    minutes = [f"{seconds / 60:.0f}" for seconds in result["seconds"]]
    how = f" {made['how']}" if made["how"] else ""
    return (
        f"Run on {made['date']} with {made['cpus']} cores ({devices}), mmedexpert-jax {made['package']}, Python "
        f"{made['python']}, {versions}. The stages took {', '.join(minutes)} minutes by seed, one after the "
        f"other.{how}\n\n"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the directory of a sweep")
    parser.add_argument("how", nargs="?", default="", help="a sentence on how it was run")
    parser.add_argument("--keep", choices=("ablation", "pairs"), default="ablation", help="what its result is kept as")
    arguments = parser.parse_args()
    keep(arguments.run, arguments.keep, arguments.how)
    runpy.run_path(str(DOCS / "figures.py"))["draw"]()
