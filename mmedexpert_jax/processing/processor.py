"""Conversations in, padded batches out: tokenizer, chat template, image patches and positions together."""

import itertools
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from PIL import Image

from mmedexpert_jax import border
from mmedexpert_jax.border import one_line
from mmedexpert_jax.errors import ConfigError, DataError, TooLong
from mmedexpert_jax.processing.batch import Batch
from mmedexpert_jax.processing.chat_template import QWEN2_VL_TEMPLATE, find_template, syntax_fault
from mmedexpert_jax.processing.images import LONGEST as LONGEST_PATH
from mmedexpert_jax.processing.images import ImageRef, in_turn, open_image, spread
from mmedexpert_jax.processing.patches import Grid, ImageConfig, Pictures
from mmedexpert_jax.rounding import round_up

Conversation = Sequence[Mapping[str, Any]]
Shown = list[tuple[np.ndarray, Grid]]  # what is seen of one image: patches and grid, of families with crops several

CHAT_END = "<|im_end|>"
IMAGE_PAD = "<|image_pad|>"
VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", IMAGE_PAD, "<|video_pad|>")
PROBE = "Which?"
LONGEST_PROMPT = 1 << 16  # characters around a question of one word; the templates of the field have below 2,000
PART_KEYS = ("min_pixels", "max_pixels", "resized_height", "resized_width")  # of an image part, as in qwen-vl-utils
# model_type -> the class that transformers and vLLM look for in a saved processor
CLASSES = {
    "qwen2_vl": "Qwen2VLProcessor",
    "qwen2_5_vl": "Qwen2_5_VLProcessor",
    "qwen3_vl": "Qwen3VLProcessor",
    "llava": "LlavaProcessor",
    "gemma3": "Gemma3Processor",
    "gemma3_text": "",  # text alone has a tokenizer and no processor
}


# Files of a folder, any of which says that it has a tokenizer, image settings or a chat template of its own
TOKENIZERS = ("tokenizer.json", "vocab.json", "tokenizer.model")
IMAGES = ("preprocessor_config.json", "processor_config.json")
TEMPLATES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Marks:
    """The tokens of a family's prompts that stand for something else than text. The defaults are Qwen2-VL's."""

    image: str = IMAGE_PAD  # stands once for an image in a rendered template, and is repeated for each of its features
    end: str = CHAT_END  # closes an assistant's turn
    never: tuple[str, ...] = VISION_TOKENS  # tokens of images and video, which no answer holds and no sampler may draw


@dataclass(frozen=True, eq=False)
class Encoded:
    """One prompt, not padded: T tokens and its images in order of appearance."""

    tokens: np.ndarray  # [T] int32, image pads expanded
    positions: np.ndarray  # [3, T] int32
    next_position: int
    vision_index: np.ndarray  # [T] int32, index into the prompt's own merged features back to back; -1 on text
    images: list[tuple[np.ndarray, tuple[int, int]]]  # patches [n, C] float32 and the grid's (rows, columns)

    @property
    def patch_counts(self) -> tuple[int, ...]:
        """Patches of each image."""
        return tuple(len(patches) for patches, _ in self.images)


class Processor:
    """Tokenizer, image processor and chat template of a checkpoint, without torch.

    A conversation is a list of messages `{"role": "user", "content": [{"type": "image", "image": source},
    {"type": "text", "text": "..."}]}`; content may be a plain string, and a source is what `open_image` takes.
    An image part may say `window`, `slices` and `plane` as `decode` has them: several slices are several images.
    Special tokens spelt out in a message are encoded as ordinary text.
    """

    def __init__(
        self,
        tokenizer: Any,
        image_config: Pictures,
        template: str | None = None,
        family: str = "qwen2_vl",
        marks: Marks = Marks(),
        settings: Mapping[str, Any] | None = None,
    ):
        """Takes a transformers fast tokenizer; `template` None means the tokenizer's own, or Qwen2-VL's.

        `family` is the model_type, one of CLASSES, and `settings` what processor_config.json says in it. Raises
        DataError where the tokenizer lacks one of the `marks`.
        """
        self.tokenizer = tokenizer
        self.family = family
        self.marks = marks
        self.settings = settings
        self.image_config = image_config
        tokenizer.chat_template = template or tokenizer.chat_template or QWEN2_VL_TEMPLATE
        vocabulary = tokenizer.get_vocab()
        missing = [token for token in (marks.end, marks.image) if token not in vocabulary]
        if missing:
            raise DataError(f"the tokenizer lacks {' and '.join(map(str, missing))}; it is not of the family {family}")
        self.image_token_id: int = vocabulary[marks.image]
        self.chat_end_id: int = vocabulary[marks.end]
        self.pad_id: int = self.chat_end_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.special_vision_ids: tuple[int, ...] = tuple(
            sorted(vocabulary[token] for token in marks.never if token in vocabulary)
        )
        # Special tokens are text or not by a switch of the tokenizer, which fails where another thread is reading.
        self._tokenizing = threading.Lock()
        self._takes_text = False  # the template is of a text model, which prints contents as they are
        self.opens_reasoning = self._check_template()  # a prompt ends with <think>, so that answers begin behind it

    def __repr__(self) -> str:
        """One line: the family and the size of the vocabulary."""
        return f"Processor({self.family}, {len(self.tokenizer)} tokens)"

    @classmethod
    def load(
        cls, path: str | Path, max_pixels: int | None = None, over: Sequence[Path] = (), family: str = "qwen2_vl"
    ) -> "Processor":
        """Reads a Hugging Face directory.

        Args:
            path: holds tokenizer.json (or vocab.json and merges.txt) and preprocessor_config.json (or, as
                transformers 5 saves it, processor_config.json); a chat template in chat_template.jinja,
                chat_template.json or tokenizer_config.json.
            max_pixels: limit of an image's area; None takes the file's, at most that of 512 tokens.
            over: directories, such as an adapter's, whose own tokenizer, template and image settings come first.
            family: the model_type.

        Raises:
            DataError: a file is missing, broken, or asks for a preprocessing that is not Qwen2-VL's.
            ConfigError: `max_pixels` is too low.
        """
        places = [*map(Path, over), Path(path)]
        tokenizer = load_tokenizer(places)
        settings = read_image_settings(places)
        template = find_template(places)
        try:
            images = ImageConfig.from_hf(settings, max_pixels)
        except ConfigError as error:
            if max_pixels is not None:
                raise
            raise DataError(f"preprocessor_config.json: {error}") from None
        return cls(tokenizer, images, template, family)

    def save(self, path: str | Path) -> None:
        """Writes what `load` and transformers read: tokenizer, chat_template.jinja, preprocessor_config.json."""
        directory = Path(path)
        directory.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(str(directory))
        file = directory / "tokenizer_config.json"
        settings = border.read_json(file) | {"model_max_length": self.tokenizer.model_max_length}
        processor_class = {"processor_class": name} if (name := CLASSES[self.family]) else {}
        classes = {"tokenizer_class": _tokenizer_class(self.tokenizer)} | processor_class
        settings = {key: value for key, value in settings.items() if key not in ("is_local", "local_files_only")}
        border.write_settings(file, _special_tokens(settings) | classes, False)
        if images := self.image_config.to_hf():
            border.write_settings(directory / "preprocessor_config.json", images | processor_class, False)
        if self.settings:
            border.write_settings(directory / "processor_config.json", {**self.settings, **processor_class}, False)

    def encode(
        self, conversation: Conversation, add_generation_prompt: bool = True, max_length: int | None = None
    ) -> Encoded:
        """One prompt, equal to that of transformers' processor of the family to the last token.

        Raises:
            DataError: a malformed conversation, an image that cannot be used, or more than `max_length` tokens
                (a prompt is never truncated: that would cut images).
        """
        messages, sources = _split_images(conversation)
        with in_turn(part["image"] for part in sources):
            shown = [self._patches(part, number) for number, part in enumerate(sources, start=1)]
        images = [view for views in shown for view in views]
        expanded = self._tokens(messages, shown, add_generation_prompt)
        if max_length is not None and len(expanded) > max_length:
            in_images = int((expanded == self.image_token_id).sum())
            raise TooLong(
                f"a prompt of {len(expanded)} tokens ({in_images} of images) is over the limit of {max_length}; "
                "raise max_prompt_length, lower max_pixels or shorten the text"
            )
        grids = [grid for _, grid in images]
        positions, next_position = self.image_config.positions(expanded, self.image_token_id, grids)
        is_pad = expanded == self.image_token_id
        vision_index = np.where(is_pad, np.cumsum(is_pad) - 1, -1).astype(np.int32)
        return Encoded(expanded, positions, next_position, vision_index, images)

    def _patches(self, part: Mapping[str, Any], number: int) -> Shown:
        source = part["image"]
        name = source.name if isinstance(source, ImageRef) else f"image {number}"
        if isinstance(source, str | Path) and str(source)[:5].lower() != "data:":
            name = border.cut(str(source), LONGEST_PATH)
        image = open_image(source, name)
        try:
            return [self.image_config.cut(view, part) for view in self._views(image)]
        except DataError as error:
            raise DataError(f"{name}: {error}") from None

    def _views(self, image: Image.Image) -> list[Image.Image]:
        """The pictures that the model sees of one: itself, for families that show no parts."""
        return [image]

    def _tokens(
        self, messages: list[dict[str, Any]], shown: Sequence[Shown], add_generation_prompt: bool
    ) -> np.ndarray:
        """The ids [T] of a conversation, image pads repeated; "<|image_pad|>" in a question is text."""
        how = {"add_generation_prompt": add_generation_prompt, "sanitize_control_tokens": True, "return_dict": False}
        tokens = np.array(self._template_applied(messages, **how), np.int32)
        return self._expand(tokens, [len(patches) for ((patches, _),) in shown])

    def _template_applied(self, messages: list[dict[str, Any]], **how: Any) -> Any:
        """transformers' apply_chat_template, whose errors are DataErrors: templates raise errors of their own."""
        if self._takes_text:
            messages = [_joined(message) for message in messages]
        try:
            with self._tokenizing:
                return self.tokenizer.apply_chat_template(messages, **how)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise DataError(f"the chat template refuses the conversation: {reason}") from error

    def _check_template(self) -> bool:
        """True where the chat template ends prompts with <think>, as those of reasoning models do.

        Raises DataError where it is no Jinja, drops what is asked, or makes a book of it; one that refuses the probe is
        told with the prompt that it refuses.
        """
        asked = [{"role": "user", "content": [{"type": "text", "text": PROBE}]}]
        try:
            said = self._template_applied(asked, add_generation_prompt=True, tokenize=False)
        except DataError as error:
            if fault := syntax_fault(self.tokenizer.chat_template):  # no prompt will come through
                raise DataError(f"the chat template is no Jinja ({fault}); copy the base model's") from error
            if self._takes_text:
                self._takes_text = False
                return False
            self._takes_text = True  # a text model's, which joins contents to strings
            return self._check_template()
        if str(asked[0]["content"]) in said and not self._takes_text:
            self._takes_text = True
            return self._check_template()
        if PROBE not in said or len(said) > LONGEST_PROMPT:
            fault = f"makes {len(said)} characters of a word" if PROBE in said else "leaves the question out"
            raise DataError(f"the chat template {fault}; copy the base model's")
        if self.marks.end in said and self.chat_end_id not in self.tokenizer.encode(said, add_special_tokens=False):
            raise DataError(
                f"the tokenizer takes the {self.marks.end} of its chat template apart; set split_special_tokens to "
                "false in tokenizer_config.json"
            )
        return said.rstrip().endswith("<think>")

    def _expand(self, tokens: np.ndarray, patch_counts: Sequence[int]) -> np.ndarray:
        """Repeats the one pad of each image as often as the image has merged tokens."""
        repeats = np.ones(len(tokens), np.int64)
        places = np.flatnonzero(tokens == self.image_token_id)
        if len(places) != len(patch_counts):
            raise DataError(
                f"the chat template wrote {len(places)} image pads for {len(patch_counts)} images; "
                "the checkpoint needs the template of a vision-language model"
            )
        repeats[places] = np.array(patch_counts, np.int64) // self.image_config.merged
        return np.repeat(tokens, repeats)

    def __call__(
        self, conversations: Sequence[Conversation], add_generation_prompt: bool = True, **sizes: Any
    ) -> Batch:
        """`collate` of `encode` over a list of conversations; `sizes` are its least ones and `multiple`."""
        return self.collate([self.encode(one, add_generation_prompt) for one in conversations], **sizes)

    def collate(
        self,
        encoded: Sequence[Encoded],
        *,
        min_length: int = 0,
        min_patches: int = 0,
        min_images: int = 0,
        multiple: int = 1,
        strips: Sequence[Sequence[int]] = (),
        min_strip: int = 0,
    ) -> Batch:
        """Right-padded batch; images in order of row, then appearance, or as the strips have them.

        The least sizes keep the shapes that jit sees few. Images that fill up to `min_images` have no valid patch.

        Args:
            min_length: least T.
            min_patches: least P; rounded up to whole merged tokens.
            min_images: least I.
            multiple: T is a multiple of this, P and N of its least common multiple with a merged token's patches.
            strips: numbers of the images that stand side by side, on each of S devices; none: each has a row.
            min_strip: least N of such a strip.

        Raises ValueError: strips that leave out an image or have it twice.
        """
        images = [image for prompt in encoded for image in prompt.images]
        merged = self.image_config.merged
        length = round_up(max([min_length, *(len(prompt.tokens) for prompt in encoded)]), multiple)
        num_images = max(min_images, len(images), len(strips) * max(map(len, strips), default=0))
        num_images = round_up(num_images, max(1, len(strips)))
        counts = [count for prompt in encoded for count in prompt.patch_counts]
        num_patches = max([min_patches, *counts, merged if num_images else 0])
        num_patches = round_up(num_patches, math.lcm(multiple, merged))
        if strips and sorted(itertools.chain(*strips)) != [*range(len(images))]:
            raise ValueError(f"strips hold each of {len(images)} images once; got {strips}")
        size = len(encoded)
        rows, width = num_images, num_patches
        if strips:
            rows, width = len(strips), max([min_strip, *(sum(counts[i] for i in strip) for strip in strips)])
            width = round_up(width, math.lcm(multiple, merged))
        slots, starts = _layout(counts, strips or [[i] for i in range(len(counts))], num_images // max(1, rows), width)
        places = np.full((num_images, num_patches), -1, np.int32)
        for slot, start, count in zip(slots, starts, counts, strict=True):
            places[slot, :count] = start % width + np.arange(count)
        batch = Batch(
            tokens=np.full((size, length), self.pad_id, np.int32),
            lengths=np.array([len(prompt.tokens) for prompt in encoded], np.int32),
            positions=np.zeros((size, 3, length), np.int32),
            next_position=np.array([prompt.next_position for prompt in encoded], np.int32),
            vision_index=np.full((size, length), -1, np.int32),
            patches=np.zeros((rows, width, self.image_config.patch_dim), np.float32),
            patch_positions=np.zeros((rows, width, 2), np.int32),
            patch_counts=np.zeros(num_images, np.int32),
            patch_places=places if strips else places[:0, :0],
        )
        arrays = batch.patches, batch.patch_positions
        flat, positions = (rearrange(x, "images patches ... -> (images patches) ...") for x in arrays)  # views
        for (patches, grid), start in zip(images, starts, strict=True):
            flat[start : start + len(patches)] = patches
            positions[start : start + len(patches)] = self.image_config.patch_positions(*grid)
        batch.patch_counts[slots] = counts
        first = 0
        for row, prompt in enumerate(encoded):
            valid = len(prompt.tokens)
            batch.tokens[row, :valid] = prompt.tokens
            batch.positions[row, :, :valid] = prompt.positions
            is_pad = prompt.vision_index >= 0
            places_of = range(first, first := first + len(prompt.images))
            features = [(starts[i] + np.arange(0, counts[i], merged)) // merged for i in places_of]
            batch.vision_index[row, :valid][is_pad] = np.concatenate([np.zeros(0, int), *features])
        return batch

    def completion(self, text: str) -> list[int]:
        """Ids of an assistant's answer, closed by `marks.end`; special tokens spelt out in it are ordinary text."""
        with self._tokenizing:
            return [*self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True), self.chat_end_id]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of ids, special tokens skipped."""
        return self.tokenizer.decode(np.asarray(ids, np.int64).tolist(), skip_special_tokens=True)


def _special_tokens(settings: dict[str, Any]) -> dict[str, Any]:
    """The content of a tokenizer_config.json with its special tokens where transformers 4 and 5 both read them.

    transformers 5 writes a list as `extra_special_tokens`, where 4.57 takes a mapping alone and fails, and the named
    ones (Gemma's `boi_token`) as keys of their own, which 4.57 ignores.
    """
    usual = [f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")]
    named = {key: value for key, value in settings.items() if key.endswith("_token") and isinstance(value, str)}
    named = {key: value for key, value in named.items() if key not in usual}
    kept = {key: value for key, value in settings.items() if key not in (*named, "extra_special_tokens")}
    listed = settings.get("extra_special_tokens") or []
    if isinstance(listed, dict):
        named |= listed
    elif listed:
        kept["additional_special_tokens"] = listed
    return kept | ({"extra_special_tokens": named} if named else {})


def _tokenizer_class(tokenizer: Any) -> str:
    """The class to name in tokenizer_config.json.

    vLLM up to 0.19 (transformers 4) takes Qwen2Tokenizer alone for this family. In transformers 5 that class cuts text
    by Qwen2's own expression whatever tokenizer.json says, so another tokenizer must be read as it stands.
    """
    from transformers import Qwen2Tokenizer

    def cuts(backend: Any) -> tuple[Any, Any]:
        parts = border.parse_json(backend.to_str(), "tokenizer.json")
        return parts["normalizer"], parts["pre_tokenizer"]

    own, usual = tokenizer.backend_tokenizer, Qwen2Tokenizer(vocab={"a": 0}, merges=[]).backend_tokenizer
    return "Qwen2Tokenizer" if cuts(own) == cuts(usual) else "PreTrainedTokenizerFast"


def _layout(
    counts: Sequence[int], strips: Sequence[Sequence[int]], slots: int, width: int
) -> tuple[list[int], list[int]]:
    """Of each image the slot, of so many in a strip, and the place of its first patch among all strips'."""
    slot, start = [0] * len(counts), [0] * len(counts)
    for number, strip in enumerate(strips):
        firsts = np.cumsum([0, *(counts[i] for i in strip)])
        for place, i in enumerate(strip):
            slot[i], start[i] = number * slots + place, number * width + int(firsts[place])
    return slot, start


def _split_images(conversation: Conversation) -> tuple[list[dict[str, Any]], list[Any]]:
    """Messages with bare image parts for the template, and the full image parts in order of appearance."""
    is_list = isinstance(conversation, Sequence) and not isinstance(conversation, str | bytes)
    if not is_list or not all(isinstance(message, Mapping) for message in conversation):
        raise DataError(
            f"a conversation is a list of messages, such as [{{'role': 'user', 'content': 'text'}}]; got "
            f"{border.shown(conversation)}"
        )
    if not conversation:
        raise DataError("an empty conversation; give it at least one message")
    messages, sources = [], []
    for number, message in enumerate(conversation, start=1):
        content = message.get("content")
        if "role" not in message or not isinstance(content, str | list | tuple):
            raise DataError(f"message {number} needs a role and a content that is text or a list of parts")
        if not isinstance(content, str):
            parts = []
            for part in spread(content):
                if isinstance(part, Mapping) and part.get("type") == "image" and part.get("image") is not None:
                    sources.append({key: part[key] for key in ("image", *PART_KEYS) if part.get(key) is not None})
                    parts.append({"type": "image"})
                elif isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
                    parts.append({"type": "text", "text": part["text"]})
                else:
                    raise DataError(
                        f'message {number}: a part is {{"type": "image", "image": image, path or bytes}} or '
                        f'{{"type": "text", "text": string}}, not {border.shown(part)}'
                    )
            content = parts
        messages.append({"role": message["role"], "content": content})
    return messages, sources


def _joined(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose parts are all text, as one text; with images, as it is."""
    parts = message["content"]
    if isinstance(parts, str) or any(part["type"] != "text" for part in parts):
        return message
    return message | {"content": "".join(part["text"] for part in parts)}


def load_tokenizer(places: Sequence[Path]) -> Any:
    """Of the first folder that has one, else of the last: tokenizer.json as it stands; vocab.json and merges.txt, or
    tokenizer.model, through AutoTokenizer.

    Raises DataError.
    """
    own = (place for place in places if any((place / name).is_file() for name in TOKENIZERS))
    directory = next(own, places[-1])
    if not directory.is_dir():
        raise DataError(f"{directory}: no such directory to load a tokenizer from")
    has_file = (directory / "tokenizer.json").is_file()
    if not any((directory / name).is_file() for name in TOKENIZERS):
        raise DataError(f"{directory}: no tokenizer.json; copy the tokenizer files of the base model there")
    try:
        if has_file:
            from transformers import PreTrainedTokenizerFast

            return PreTrainedTokenizerFast.from_pretrained(str(directory), local_files_only=True)
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    except Exception as error:
        for file in filter(Path.is_file, (directory / name for name in TOKENIZERS)):
            border.refuse_pointer(file)
        reason = one_line(error)
        raise DataError(f"{directory}: the tokenizer files cannot be read ({reason}); copy them again") from error


def read_image_settings(places: Sequence[Path]) -> Mapping[str, Any]:
    """The image processor's settings of the first folder that has them, in the whole processor's file or in one of
    their own, in transformers' order.

    Raises DataError.
    """
    for place in places:
        whole, own = place / "processor_config.json", place / "preprocessor_config.json"
        last = place == places[-1] and not own.is_file()
        for file in filter(Path.is_file, (whole, own)):
            try:
                settings = border.read_json(file, dict[str, Any])
                if file == own:
                    return settings
                if "image_processor" in settings or last:  # a file of transformers 4 leaves them to the other
                    return border.check(settings.get("image_processor"), dict[str, Any], "image_processor")
            except DataError:
                raise DataError(
                    f"{file}: not a JSON object of image processor settings; copy it from the base"
                ) from None
    raise DataError(f"{places[-1]}: no preprocessor_config.json; copy the one of the base model there")
