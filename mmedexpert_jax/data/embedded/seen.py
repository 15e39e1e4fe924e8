"""Image tasks: what is drawn or cut out, what it shows, and how the question is put."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random

from PIL import Image

from mmedexpert_jax.data.embedded.problem import Problem, Step
from mmedexpert_jax.data.embedded.wording import question


@dataclass(frozen=True)
class Scene:
    """An image and what stands in it."""

    image: Image.Image  # as the model sees it
    steps: tuple[Step, ...]  # what it shows, in the order of reading
    values: Mapping[str, object] = field(default_factory=dict)  # what it was made from, by name; decides the answer


@dataclass(frozen=True)
class ImageTask:
    """A task whose evidence is in an image."""

    # task, specialty, title, doi, source, licence, what, prior, mechanism: as in `rules.Rule`
    task: str
    specialty: str
    title: str
    doi: str
    source: str
    licence: str
    contexts: tuple[str, ...]  # ways to say what the image is
    what: str
    options: tuple[str, ...]  # all option texts, from the lowest band to the highest where they have an order
    prior: str
    mechanism: str
    scene: Callable[[Random, int, str], Scene]  # (rng, index of the answer, pool) -> a scene with that answer
    running: bool = False  # whether the effects of the steps are running totals rather than statements
    ordered: bool = True  # whether the options have an order, so that a rival is exceeded or not reached

    def problem(self, rng: Random, band: int, pool: str) -> Problem:
        """A scene whose answer is option `band`, with its question."""
        scene = self.scene(rng, band, pool)
        return Problem(
            key=f"{self.task} {scene.values}",
            question=question(rng, pool, self.contexts, self.what, of_image=True),
            steps=scene.steps,
            values=scene.values,
            images=(scene.image,),
        )
