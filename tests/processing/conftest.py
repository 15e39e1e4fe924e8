"""Our processor and transformers', read from the same directory."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer, Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor
from transformers.processing_utils import ProcessorMixin

from mmedexpert_jax.processing import Processor
from mmedexpert_jax.processing.chat_template import QWEN2_VL_TEMPLATE


class ReferenceProcessor(Qwen2VLProcessor):
    """transformers' own, built without the video processor that torchvision would have to serve."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None):
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


@pytest.fixture(scope="session")
def processor(tiny_tokenizer_dir: Path) -> Processor:
    return Processor.load(tiny_tokenizer_dir)


@pytest.fixture(scope="session")
def reference(tiny_tokenizer_dir: Path) -> ReferenceProcessor:
    images = Qwen2VLImageProcessorPil.from_pretrained(tiny_tokenizer_dir, max_pixels=401_408)
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    return ReferenceProcessor(images, tokenizer, QWEN2_VL_TEMPLATE)
