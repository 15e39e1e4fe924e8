"""The server over the embedded model, by a plain client, openai's own, and clients that misbehave."""

import base64
import io
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import httpx2 as httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from mmedexpert_jax.errors import NotFinite
from mmedexpert_jax.models import load_policy, load_processor
from mmedexpert_jax.rollout import Engine, Settings, server, widths
from mmedexpert_jax.rollout import desk as desk_module
from mmedexpert_jax.rollout import pool as pool_module
from mmedexpert_jax.rollout.decode import programs
from mmedexpert_jax.rollout.desk import Busy, Choice, Desk

LIMIT = 24


@pytest.fixture(scope="module")
def model():
    return load_policy("mini")[:2]


@pytest.fixture(scope="module")
def desk(model):
    desk = Desk(*model, {"mini": None}, load_processor("mini"), 4, 6, 256, LIMIT)
    yield desk
    desk.close()


@pytest.fixture(scope="module")
def address(desk):
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    running = uvicorn.Server(uvicorn.Config(server.application(desk, "secret"), log_level="critical"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
    thread.start()
    while not running.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    running.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def ask(address):
    def post(content="Is a score of 7 high?", key="secret", **fields):
        body = {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": LIMIT} | fields
        headers = {"authorization": f"Bearer {key}"}
        return httpx.post(f"{address}/v1/chat/completions", json=body, headers=headers, timeout=300)

    return post


def picture(image=None, form="png", **options):
    data = io.BytesIO()
    (image or Image.new("RGB", (56, 56), (200, 30, 30))).save(data, form, **options)
    return {
        "type": "image_url",
        "image_url": {"url": "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()},
    }


@pytest.mark.parametrize("inside", [False, True])
def test_what_an_image_part_says_of_itself_counts(ask, desk, inside):
    """Clients write it beside the address or with it; as much text, and the pictures as Pillow has them."""

    def tokens(part, **own):
        part = part | ({"image_url": part["image_url"] | own} if inside else own)
        response = ask([part, {"type": "text", "text": "What is it?"}], max_tokens=1)
        return response.status_code, response.json().get("usage", {}).get("prompt_tokens"), response.text

    def expected(*images, **own):
        parts = [{"type": "image", "image": image} | own for image in images]
        content = [*parts, {"type": "text", "text": "What is it?"}]
        return len(desk.processor.encode([{"role": "user", "content": content}]).tokens)

    large, small = Image.new("RGB", (280, 280)), Image.new("RGB", (56, 56))
    for own in ({"resized_height": 56, "resized_width": 84}, {"max_pixels": 6272}, {"min_pixels": None}):
        assert tokens(picture(large), **own)[1] == expected(large, **own)
    assert expected(large, max_pixels=6272) < expected(large)
    deep = picture(Image.fromarray(np.arange(56 * 56, dtype=np.uint16).reshape(56, 56)))
    assert tokens(deep)[0] == 400 and tokens(deep, window="range")[1] == expected(small)
    frames = picture(small, "gif", save_all=True, append_images=[Image.new("RGB", (56, 56), (9, 99, 9))])
    assert tokens(frames)[0] == 400
    assert tokens(frames, slices=[1])[1] == expected(small) and tokens(frames, slices=2)[1] == expected(small, small)
    for own, says in (
        ({"slices": 33}, "slices counted; give fewer"), ({"zoom": 2}, "zoom is not supported"),
        ({"window": "dark"}, "window"), ({"max_pixels": "many", "slices": 1}, "max_pixels"),
    ):  # fmt: skip
        status, _, text = tokens(frames, **own)
        assert status == 400 and says in text
    assert tokens(picture(large), mime_type="image/png", filename="a.png")[1] == expected(large)


def test_no_more_images_are_decoded_than_a_request_may_have(ask, monkeypatch):
    more = {"save_all": True, "append_images": [Image.new("RGB", (56, 56), "red")]}
    frames = picture(Image.new("RGB", (56, 56)), "gif", **more)
    decode, decoded = server.decode, []
    monkeypatch.setattr(
        server, "decode", lambda *given, **named: decoded.extend(decode(*given, **named)) or decoded[-2:]
    )
    response = ask([frames | {"slices": 2}] * 17)
    assert response.status_code == 400 and "content[16]: the server takes 32 images a request" in response.text
    assert len(decoded) == 32


def test_an_image_is_taken_however_its_base64_is_written(ask, address):
    part = picture()
    head, _, encoded = part["image_url"]["url"].partition(",")
    lines = base64.encodebytes(base64.b64decode(encoded)).decode()  # of 76 characters, as RFC 2045 has it
    expected = ask([part, {"type": "text", "text": "What is it?"}]).json()["choices"]
    other = (f"data:{kind};base64,{encoded}" for kind in ("application/octet-stream", 'image/png;name="a b.png"'))
    for url in (f"{head},{lines}", f"{head.upper()},{encoded}", f"data:;base64,{encoded}", *other):
        asked = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is it?"}]
        assert ask(asked).json()["choices"] == expected
    for url in ("file:///etc/passwd", "/etc/passwd", "data:text/plain,x", f"{head},%%%", encoded):
        assert ask([{"type": "image_url", "image_url": {"url": url}}]).status_code == 400


@pytest.mark.parametrize(
    ("given", "status"), [("bearer secret", 200), ("BEARER  secret", 200), ("Bearer secreta", 401)]
)
def test_the_name_of_the_scheme_has_no_case(address, given, status):
    assert httpx.get(f"{address}/v1/models", headers={"authorization": given}).status_code == status


def test_answers_are_the_engines(ask, model):
    conversation = [{"role": "user", "content": "Is a score of 7 high?"}]
    engine = Engine(*model, load_processor("mini"), Settings(max_new_tokens=LIMIT))
    expected = dict(engine.answer([conversation]))[0][0]
    found = ask(logprobs=True).json()
    choice = found["choices"][0]
    assert choice["message"]["content"] == expected.text
    assert choice["finish_reason"] == ("length" if expected.truncated else "stop")
    assert found["usage"]["completion_tokens"] == expected.tokens == len(choice["logprobs"]["content"])
    assert sum(token["logprob"] for token in choice["logprobs"]["content"]) == pytest.approx(expected.logprob, abs=1e-3)


def test_a_pool_never_draws_tokens_of_images(desk, monkeypatch):
    made = []
    monkeypatch.setattr(
        desk_module, "Pool", lambda model, sampling, *rest: made.append(sampling) or SimpleNamespace(warm_up=list)
    )
    desk._open("mini")
    assert set(made[0].ban) == set(desk.processor.special_vision_ids) and made[0].ban


@pytest.fixture(scope="module")
def client(address):
    import openai  # here and below, since it takes long to import

    with openai.OpenAI(base_url=f"{address}/v1", api_key="secret", max_retries=0, timeout=300) as client:
        yield client


QUESTION = "A man of 61 has a respiratory rate of 32. What is his score?"  # answered in several words


def test_openai_s_own_client_is_served(client, ask):
    import openai

    assert [model.id for model in client.models.list()] == ["mini"] and client.models.retrieve("mini").id == "mini"
    asked = {"model": "mini", "temperature": 0, "max_tokens": LIMIT, "logprobs": True, "n": 2}
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    whole = client.chat.completions.create(messages=messages, **asked)
    choice = whole.choices[0]
    assert [one.index for one in whole.choices] == [0, 1] and whole.choices[1].message == choice.message
    assert whole.usage.completion_tokens == 2 * len(choice.logprobs.content)
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    texts, tokens, ended, usage = ["", ""], [0, 0], [None, None], None
    stream = client.chat.completions.create(
        messages=messages, stream=True, stream_options={"include_usage": True}, **asked
    )
    for chunk in stream:
        usage = chunk.usage or usage
        for part in chunk.choices:
            texts[part.index] += part.delta.content
            tokens[part.index] += len(part.logprobs.content)
            ended[part.index] = part.finish_reason
    assert texts == [choice.message.content] * 2 and ended == [choice.finish_reason] * 2
    assert usage == whole.usage and sum(tokens) == usage.completion_tokens
    with pytest.raises(openai.NotFoundError, match="not served"):
        client.models.retrieve("other/model")
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        client.chat.completions.create(messages=messages, model="mini", max_tokens=10**6)
    with pytest.raises(openai.AuthenticationError, match="key"):
        client.with_options(api_key="wrong").models.list()


def test_after_the_warm_up_a_request_compiles_nothing(ask, desk):
    desk.warm_up()
    before = len(programs)
    assert ask().status_code == ask([picture(), {"type": "text", "text": "What is it?"}]).status_code == 200
    assert ask(n=4).status_code == ask([picture(), {"type": "text", "text": "What is it?"}], n=2).status_code == 200
    assert programs[before:] == []


@pytest.mark.parametrize("content", ["What is gout?", [picture(), {"type": "text", "text": "What is it?"}]])
def test_a_prompt_is_read_once_for_all_of_its_choices(ask, monkeypatch, content):
    read, prefill = [], pool_module.prefill

    def seen(model, sampling, mesh, params, batch, *others):
        read.append((len(batch.tokens), len(batch.patch_counts)))
        return prefill(model, sampling, mesh, params, batch, *others)

    monkeypatch.setattr(pool_module, "prefill", seen)
    alone = ask(content).json()["choices"]
    assert read == [(1, int(isinstance(content, list)))]
    several = ask(content, n=3).json()["choices"]
    assert read[1:] == read[:1] and several == [alone[0] | {"index": number} for number in range(3)]


def test_choices_of_a_seed_are_the_same_again_and_differ_from_each_other(ask):
    settings = {"n": 3, "temperature": 1.0, "seed": 5, "content": [picture(), {"type": "text", "text": "Describe it."}]}
    first, second = (ask(**settings).json()["choices"] for _ in range(2))
    assert first == second and len({choice["message"]["content"] for choice in first}) == 3


def test_a_stream_is_the_answer_and_stops_where_it_is_told(ask):
    whole = ask(QUESTION).json()["choices"][0]["message"]["content"]
    word = whole.split()[2]
    events = [line[6:] for line in ask(QUESTION, stream=True).text.splitlines() if line]
    assert events[-1] == "[DONE]"
    parts = [json.loads(event)["choices"][0] for event in events[:-1]]
    assert "".join(part["delta"]["content"] for part in parts) == whole and parts[-1]["finish_reason"]
    response = ask(QUESTION, stop=[word, "no such text"], logprobs=True).json()
    cut, tokens = response["choices"][0], response["choices"][0]["logprobs"]["content"]
    assert cut["message"]["content"] == whole[: whole.find(word)] and cut["finish_reason"] == "stop"
    # The answer ends with the token that completes the stop text, however late the desk looked.
    said = [token["token"] for token in tokens]
    assert word in "".join(said) and word not in "".join(said[:-1])
    assert response["usage"]["completion_tokens"] == len(tokens)


@pytest.mark.parametrize(
    ("fields", "status", "says"),
    [
        ({"n": 0}, 400, "n"),
        ({"n": 7}, 400, "n 7 is over the server's queue of 6"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"top_p": 0}, 400, "top_p"),
        ({"max_tokens": 10**9}, 400, "max_tokens"),
        ({"model": "other" * 99}, 404, "not served"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "role"),
        ({"content": [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}]}, 400, "data:image"),
        ({"content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}, 400, "content"),
        ({"content": "word " * 2000}, 400, "tokens (0 of images) is over the limit"),
        ({"content": "word " * 10**6}, 400, "characters is over the limit"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, 400, "role"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "tools is not supported"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format is not supported"),
        ({"frequency_penalty": 0.5}, 400, "frequency_penalty is not supported"),
        ({"logprobs": True, "top_logprobs": 3}, 400, "top_logprobs is not supported"),
        ({"guided_choice": ["A", "B"]}, 400, "guided_choice is not supported"),
        ({"stop_token_ids": [3]}, 400, "stop_token_ids is not supported"),
        ({"chat_template_kwargs": {"enable_thinking": True}}, 400, "chat_template_kwargs is not supported"),
        ({"chat_template_kwargs": {"add_generation_prompt": False}}, 400, "chat_template_kwargs is not supported"),
        ({"enable_thinking": True}, 400, "enable_thinking is not supported"),
        ({"reasoning_effort": "medium"}, 400, "reasoning_effort is not supported"),
        ({"skip_special_tokens": False}, 400, "skip_special_tokens is not supported"),
        ({"do_sample": False}, 400, "do_sample is not supported"),
        ({"tool_choice": "required"}, 400, "tool_choice is not supported"),
        ({"web_search_options": {}}, 400, "web_search_options is not supported"),
        ({"best_of": 3}, 400, "best_of is not supported"),
        ({"x" * 10**5: 1}, 400, "is not supported"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, 400, "calls of tools"),
        ({"messages": [{"role": "user", "content": None}]}, 400, "content"),
        ({"stop": ["x"] * 17}, 400, "stop"),
        ({"seed": 2**64}, 400, "seed"),
        ({"key": "wrong"}, 401, "key"),
    ],
)
def test_what_cannot_be_answered_gets_its_status_and_one_line(ask, fields, status, says):
    response = ask(**fields)
    message = response.json()["error"]["message"]
    assert response.status_code == status and says in message and len(message) < 400 and "Traceback" not in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("chat_template_kwargs", {"enable_thinking": False}), ("enable_thinking", False), ("think", False),
        ("think", None), ("thinking", {"type": "disabled"}), ("reasoning_effort", "none"), ("num_beams", 1),
        ("detokenize", True), ("truncate_prompt_tokens", -1), ("n_predict", -1), ("timings_per_token", True),
        ("guided_decoding_backend", "auto"), ("usage", {"include": True}), ("provider", {"order": ["x"]}),
        ("timeout", 60), ("caching", True), ("drop_params", True), ("api_key", "x"), ("chat_template_kwargs", {}),
    ],
)  # fmt: skip
def test_what_clients_send_that_changes_no_answer_passes(desk, name, value):
    assert server._is_harmless(name, value, desk.processor)


def test_a_switch_of_the_template_is_no_idle_one():
    processor = SimpleNamespace(tokenizer=SimpleNamespace(chat_template="{% if enable_thinking %}<think>{% endif %}"))
    for name, value in (("enable_thinking", False), ("chat_template_kwargs", {"enable_thinking": False})):
        assert not server._is_harmless(name, value, processor)


def test_a_full_queue_is_told_with_the_time_to_come_again(ask, desk, monkeypatch):
    encoded = desk.processor.encode([{"role": "user", "content": "Why?"}])
    with pytest.raises(Busy):
        desk.submit([Choice("mini", encoded, 0, 0.0, 1.0, 0, LIMIT, lambda done, ended: None)] * 7)

    over = threading.Event()
    slow = Choice("mini", encoded, 0, 1.0, 1.0, 0, LIMIT, lambda done, ended: over.set() if ended else None)
    gone = [Choice("mini", encoded, 0, 1.0, 1.0, 0, LIMIT, lambda done, ended: None) for _ in range(6)]
    with desk._news:  # the desk's own thread waits, so that all of them do
        desk.submit(gone)
        desk.drop(gone[:1])
        desk.submit([slow])
        with pytest.raises(Busy):
            desk.submit(gone[:1])
        desk.drop(gone)
    assert over.wait(60)

    def full(choices):
        raise Busy

    monkeypatch.setattr(desk, "submit", full)
    response = ask()
    assert response.status_code == 429 and response.headers["retry-after"] and "wait" in response.text


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'{"messages": NaN}', b"[" * 100_000, b"\xff\xfe", b"null"])
def test_a_body_that_is_no_request(address, body):
    headers = {"authorization": "Bearer secret"}
    response = httpx.post(f"{address}/v1/chat/completions", content=body, headers=headers)
    assert response.status_code == 400 and response.json()["error"]["message"]


def test_of_two_limits_that_of_the_newer_field_counts(ask):
    for limits, count in (((8, 3), 3), ((3, 8), 8), ((None, 2), 2), ((2, None), 2)):
        response = ask(QUESTION, max_tokens=limits[0], max_completion_tokens=limits[1]).json()
        assert response["usage"]["completion_tokens"] == count


def test_fields_that_change_nothing_are_taken(ask):
    idle = {"tools": None, "logit_bias": {}, "presence_penalty": 0, "response_format": {"type": "text"}, "user": "me"}
    expected = ask().json()["choices"]
    assert ask(**idle, n=None, stop=None, seed=None, top_p=None, model=None).json()["choices"] == expected
    # vLLM's own defaults, and what OpenAI's clients send along
    theirs = {"repetition_penalty": 1.0, "length_penalty": 1.0, "min_p": 0.0, "min_tokens": 0, "ignore_eos": False}
    theirs |= {"skip_special_tokens": True, "add_generation_prompt": True, "stop_token_ids": [], "guided_json": None}
    theirs |= {"echo": False, "use_beam_search": False, "store": True, "metadata": {"run": "1"}, "tool_choice": "auto"}
    assert ask(**theirs).json()["choices"] == expected


def test_a_turn_without_content_is_an_empty_one_and_a_refusal_is_its_text(ask):
    def said(turn):
        first, last = ({"role": "user", "content": text} for text in ("Why?", "And now?"))
        return ask(messages=[first, {"role": "assistant"} | turn, last]).json()["choices"]

    assert said({"content": None}) == said({"content": ""})
    assert said({"content": None, "refusal": "No."}) == said({"content": "No."})
    assert said({"content": [{"type": "refusal", "refusal": "No."}]}) == said({"content": "No."})


@pytest.mark.parametrize("text", ["Größe 中文 ½ 🩻", " a  b\n\n\té", "Is a score of 7 high?", "�x"])
def test_bytes_of_tokens_are_those_of_the_text(desk, text):
    tokens = np.asarray(desk.processor.tokenizer(text, add_special_tokens=False)["input_ids"])
    pieces = [server._piece(desk.processor, tokens[:count])[1] for count in range(1, len(tokens) + 1)]
    assert b"".join(pieces) == text.encode()


def test_an_id_behind_the_tokenizers_last_adds_no_text(desk):
    tokens = np.asarray(desk.processor.tokenizer("中", add_special_tokens=False)["input_ids"])[:1]
    assert server._piece(desk.processor, np.array([*tokens, 10**6])) == ("", b"")


def test_bytes_of_tokens_of_sentencepiece_are_those_of_the_text():
    named = ["▁Gr", "▁b", "a", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend = Tokenizer(BPE({name: number for number, name in enumerate(named)}, [], byte_fallback=True))
    blank, strip = decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)
    backend.decoder = decoders.Sequence([blank, decoders.ByteFallback(), decoders.Fuse(), strip])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    processor = SimpleNamespace(tokenizer=tokenizer, decode=lambda ids: tokenizer.decode([int(one) for one in ids]))
    tokens = np.array([0, *(3 + byte for byte in "ö".encode()), 2, 1, *(3 + byte for byte in "中🩻".encode()), 1])
    pieces = [server._piece(processor, tokens[:count])[1] for count in range(1, len(tokens) + 1)]
    assert b"".join(pieces).decode() == processor.decode(tokens) == "Gröa b中🩻 b"


@pytest.mark.parametrize(
    ("head", "body", "status"),
    [
        ("Content-Length: 5000", b'{"messages": [', 408),  # half a body
        ("Content-Length: -1", b"{}", 400),
        ("Content-Length: 1e3", b"{}", 400),
        ("Content-Length: 3", b'{"messages": []}', 400),  # cut within the first word
        ("Content-Length: 2\r\nContent-Length: 3", b"{}", 400),
        ("Transfer-Encoding: chunked", b"zz\r\n{}\r\n0\r\n\r\n", 400),
        ("Content-Encoding: gzip\r\nContent-Length: 2", b"\x1f\x8b", 400),
    ],
)
def test_bodies_that_are_not_what_their_heads_say(address, ask, monkeypatch, head, body, status):
    monkeypatch.setattr(server, "PATIENCE", 0.5)
    host, port = address.removeprefix("http://").split(":")
    lines = ["POST /v1/chat/completions HTTP/1.1", f"Host: {host}", "Authorization: Bearer secret", head, "", ""]
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall("\r\n".join(lines).encode() + body)
        assert int(connection.recv(4096).split()[1]) == status
    monkeypatch.undo()
    assert ask().status_code == 200


def test_64_clients_of_whom_some_leave_in_the_middle_of_a_stream(address, ask, desk):
    expected = ask().json()["choices"]

    def one(number):
        if number % 4:
            response = ask()
            return response.status_code, response.status_code != 200 or response.json()["choices"] == expected
        body = {"messages": [{"role": "user", "content": QUESTION}], "stream": True}
        headers = {"authorization": "Bearer secret"}
        with httpx.stream("POST", f"{address}/v1/chat/completions", json=body, headers=headers, timeout=300) as stream:
            next(stream.iter_lines(), None)
            return stream.status_code, True

    with ThreadPoolExecutor(64) as clients:
        statuses, right = zip(*clients.map(one, range(64)), strict=True)
    assert set(statuses) <= {200, 429} and statuses.count(200) >= 4 and all(right)
    deadline = time.monotonic() + 60
    while desk._running or any(desk._waiting.values()):  # those who left are let go
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert ask().json()["choices"] == expected


def test_long_and_slow_bodies_and_clients_that_leave(address, ask, monkeypatch):
    monkeypatch.setattr(server, "BODY", 1000)
    assert ask("x" * 2000).status_code == 413
    monkeypatch.undo()
    monkeypatch.setattr(server, "PATIENCE", 0.5)

    def slowly():
        yield b"{"
        time.sleep(1.5)
        yield b"}"

    headers = {"authorization": "Bearer secret"}
    assert httpx.post(f"{address}/v1/chat/completions", content=slowly(), headers=headers).status_code == 408
    monkeypatch.undo()
    with pytest.raises(httpx.ReadTimeout):
        body = {"messages": [{"role": "user", "content": "x"}]}
        httpx.post(f"{address}/v1/chat/completions", json=body, headers=headers, timeout=0.01)
    assert httpx.get(f"{address}/health").json() == {"status": "ok"}
    assert ask().status_code == 200


def test_the_place_of_a_choice_that_was_dropped_is_the_next_one_s_alone(desk):
    """The next prompt is admitted before another step is made: rows of the dropped one must not go on in its place."""

    def choice(text, tell, watched=False):
        encoded = desk.processor.encode([{"role": "user", "content": text}])
        return Choice("mini", encoded, 0, 0.0, 1.0, 0, LIMIT, tell, watched)

    def answer(submit):
        over, found = threading.Event(), []
        submit(choice("Is a score of 7 high?", lambda done, ended: (found.append(done), over.set())))
        assert over.wait(60)
        return found[0].tokens.tolist(), found[0].lengths.tolist()

    alone = answer(lambda one: desk.submit([one]))
    told = []

    def beside(next_one):
        def tell(done, ended):
            told.append(ended)
            if len(told) == 1:
                dropped.dropped = True
            elif len(told) == 2:  # the desk has just let go of the dropped one
                desk.submit([next_one])

        dropped = choice("What is a fever?", lambda done, ended: None)
        desk.submit([dropped, choice("What is gout?", tell, watched=True)])

    assert answer(beside) == alone and told[:2] == [False, False]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_texts_that_are_read_together_are_answered_as_each_alone(desk, temperature):
    """Three to six that wait at once, some of another padded length, one with an image between them."""
    words = ["Is a score of 7 high?", "What is gout?", "Is it? " * 40, "Why?", "Is it so? " * 30, "Who?"]
    contents = [*words[:4], [{"type": "image", "image": Image.new("RGB", (56, 56))}], *words[4:]]
    prompts = [desk.processor.encode([{"role": "user", "content": content}]) for content in contents]

    def answers(numbers):
        found, over = {}, threading.Semaphore(0)

        def tell(number):
            return lambda done, ended: ended and (found.update({number: done}), over.release())

        limits = temperature, 1.0, 0, LIMIT
        desk.submit([Choice("mini", prompts[number], number, *limits, tell(number)) for number in numbers])
        for _ in numbers:
            assert over.acquire(timeout=60)
        return {number: (found[number].tokens.tolist(), found[number].lengths.tolist()) for number in numbers}

    alone = {number: answers([number])[number] for number in range(len(prompts))}
    for together in (range(6), (6, 5, 3, 1), (0, 1, 3)):
        assert answers(together) == {number: alone[number] for number in together}


def test_after_a_long_answer_a_short_one_has_short_caches_again(model, monkeypatch):
    monkeypatch.setattr(widths, "SMALLEST_CACHE", 4)
    desk = Desk(*model, {"mini": None}, load_processor("mini"), 2, 6, 256, LIMIT)
    encoded = desk.processor.encode([{"role": "user", "content": "Is a score of 7 high?"}])

    def answer(limit):
        over, found = threading.Event(), []
        tell = lambda done, ended: ended and (found.append(done), over.set())  # noqa: E731
        desk.submit([Choice("mini", encoded, 0, 0.0, 1.0, 0, limit, tell)])
        assert over.wait(60)
        return found[0].tokens[0, :limit].tolist(), desk._pools["mini"]._cache_length

    short = answer(3)
    long = answer(LIMIT)
    again = answer(3)
    desk.close()
    assert short == again and short[0] == long[0][:3] and short[1] == 4 < long[1]


def test_a_model_that_is_not_finite_is_not_served(model):
    network, params = model
    norm = {"weight": params["model"]["norm"]["weight"].at[3].set(float("nan"))}
    broken = params | {"model": params["model"] | {"norm": norm}}
    desk = Desk(network, broken, {"mini": None}, load_processor("mini"), 4, 6, 256, LIMIT)
    with pytest.raises(NotFinite, match="its probabilities are not finite"):
        desk.warm_up()
    desk.close()
