"""Prompts: rendered as transformers renders them, encoded and decoded as tokenizers does."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from edgetune.errors import PromptError
from edgetune.runtime.bundle import open_bundle
from edgetune.runtime.prompt import Prompter, TextStream

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA_3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' "
    "+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
LLAMA_3_2 = """{{- bos_token }}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
QWEN_2_5 = """{%- if tools %}
    {%- for tool in tools %}{{- tool | tojson }}{%- endfor %}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first)
        or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
QWEN_3 = """{%- set ns = namespace(last=messages|length - 1, searching=true) %}
{%- for message in messages[::-1] %}
    {%- if ns.searching and message.role == "user"
        and not(message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}
        {%- set ns.searching = false %}
        {%- set ns.last = (messages|length - 1) - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "assistant" and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""
TINY_LLAMA = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
  {% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + message['content'] + eos_token }}
{% endif %}
{# a comment #}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
GENERATION_MARKS = (
    "{% for message in messages %}{% if message.role == 'assistant' %}{% generation %}{{ message.content }}\n"
    "{% endgeneration %}{% else %}{{ message.content }}\n{% endif %}{% endfor %}"
)
TEMPLATES = {
    "nano": None,
    "chatml": CHATML,
    "llama 3": LLAMA_3,
    "llama 3.2": LLAMA_3_2,
    "qwen 2.5": QWEN_2_5,
    "qwen 3": QWEN_3,
    "tinyllama": TINY_LLAMA,
    "generation marks": GENERATION_MARKS,
}
SYSTEM = {"role": "system", "content": " Be brief. "}
USER = {"role": "user", "content": ' Turn "on" the\nlamp; 日本語 é 🙂 \\n <b> & \' {{ x }} {% y %} '}
ASSISTANT = {"role": "assistant", "content": '<think>\n</think>\n{"action": "on"} '}
CONVERSATIONS = [[USER], [SYSTEM, USER], [USER, ASSISTANT, USER], [SYSTEM, USER, ASSISTANT, USER], [USER, ASSISTANT]]


@pytest.fixture(scope="module")
def hf_tokenizer(tiny_base: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_base)


def prompter(tiny_bundle: Path, **chat: Any) -> Prompter:
    bundle = open_bundle(tiny_bundle)
    return Prompter(dataclasses.replace(bundle, chat=dataclasses.replace(bundle.chat, **chat)))


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_renders_as_by_transformers(tiny_bundle: Path, hf_tokenizer: Any, name: str) -> None:
    template = TEMPLATES[name] or hf_tokenizer.chat_template
    device = prompter(tiny_bundle, template=template)
    for messages in CONVERSATIONS:
        for add in (True, False):
            wanted = hf_tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=add
            )
            assert device.render(messages, add_generation_prompt=add) == wanted


@pytest.mark.parametrize(
    "template",
    [
        "{% if true %}a{% endif %}\n\nb",
        "  {%+ if true %}a{% endif +%}\n  b",
        "{{ '{% if' }}  {% if true %}b{% endif %}",
        "  {% if '%}' == '%}' %}\na  {% endif %}\n",
        "{% if true -%}\n\n a\n{%- endif %} \n",
        "a\n\t{# \n note #}\nb\n",
    ],
)
def test_blocks_are_trimmed_as_by_transformers(tiny_bundle: Path, hf_tokenizer: Any, template: str) -> None:
    wanted = hf_tokenizer.apply_chat_template([USER], chat_template=template, tokenize=False)
    assert prompter(tiny_bundle, template=template).render([USER], add_generation_prompt=False) == wanted


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'on' in messages[0].content }} {{ 'off' in messages[0]['content'] }}",
        "{{ 'off' not in messages[0].content }} {{ \"on\" not in messages[0].content }}",
        "{{ 'role' in messages[0] }} {{ 'tools' in messages[0] }} {{ 'tools' not in messages[0] }}",
        "{% if true and 'on' in messages[0].content and not 'off' in messages[0].content %}yes{% endif %}",
        "{{ messages[0].role in ['user', 'system'] }} {{ 'user' in ['user'] }} {{ 'a in b' }}",
        "{% for m in messages %}{{ 'on' in m.content.strip() }}{% endfor %}{% for x in ['on'] %}{{ x }}{% endfor %}",
    ],
)
def test_membership_is_tested_as_by_transformers(tiny_bundle: Path, hf_tokenizer: Any, template: str) -> None:
    wanted = hf_tokenizer.apply_chat_template([USER], chat_template=template, tokenize=False)
    assert prompter(tiny_bundle, template=template).render([USER], add_generation_prompt=False) == wanted


def test_the_bundle_says_what_bos_and_eos_are(tiny_bundle: Path) -> None:
    device = prompter(tiny_bundle, template="{{ bos_token }}|{{ eos_token }}", bos_token="<“>", eos_token=None)
    assert device.render([USER]) == "<“>|"


def test_the_bundle_says_what_other_special_tokens_are(tiny_bundle: Path) -> None:
    device = prompter(tiny_bundle, template="{{ pad_token }}{{ unk_token }}", special_tokens={"pad_token": "<“>"})
    assert device.render([USER]) == "<“>"


TOOL = {"type": "function", "function": {"name": "lamp", "parameters": {"type": "object", "properties": {}}}}
CALL = {"type": "function", "function": {"name": "lamp", "arguments": {"room": "bath"}}}
TOOLS_WRITTEN = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<{{ m.role }}>{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_tools_and_calls_are_rendered_as_by_transformers(tiny_bundle: Path, hf_tokenizer: Any) -> None:
    called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    talk = [USER, called, {"role": "tool", "content": "ok"}]
    wanted = hf_tokenizer.apply_chat_template(
        talk, tools=[TOOL], chat_template=TOOLS_WRITTEN, tokenize=False, add_generation_prompt=True
    )
    device = prompter(tiny_bundle, template=TOOLS_WRITTEN)
    assert device.render(talk, tools=[TOOL]) == wanted
    legacy = {"role": "assistant", "content": "", "function_call": {"name": "lamp", "arguments": '{"room": "bath"}'}}
    assert device.render([USER, legacy, {"role": "function", "content": "ok"}], tools=[TOOL]) == wanted
    assert device.chat_ids(talk, tools=[TOOL]) == hf_tokenizer(wanted, add_special_tokens=False)["input_ids"]


def test_a_template_of_their_own_renders_tools(tiny_bundle: Path) -> None:
    device = prompter(tiny_bundle, template="plain", tool_template=TOOLS_WRITTEN)
    assert device.render([USER]) == "plain"
    assert "lamp" in device.render([USER], tools=[TOOL])


def test_tools_that_the_template_does_not_write_are_refused(tiny_bundle: Path) -> None:
    with pytest.raises(PromptError, match="tools: the chat template makes no use of this"):
        prompter(tiny_bundle).render([USER], tools=[TOOL])


def test_token_ids_of_a_conversation_equal_the_training_tokenizers(tiny_bundle: Path, hf_tokenizer: Any) -> None:
    device = prompter(tiny_bundle)
    for messages in CONVERSATIONS:
        wanted = hf_tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert device.chat_ids(messages) == list(wanted)


def test_a_nul_character_does_not_cut_the_prompt_off(tiny_bundle: Path) -> None:
    messages = [{"role": "user", "content": "a\0b\\u0000 \ue000"}, {"role": "assistant", "content": "\0"}]
    assert "a\0b\\u0000 \ue000<|end|><|assistant|>\0<|end|>" in prompter(tiny_bundle).render(messages)


def test_the_system_message_of_the_bundle_leads_unless_there_is_another(tiny_bundle: Path) -> None:
    device = prompter(tiny_bundle, system="Default.")
    assert "<|system|>Default.<|end|><|user|>" in device.render([USER])
    assert "Default." not in device.render([SYSTEM, USER])


def test_a_system_message_that_the_template_does_not_write_is_refused(tiny_bundle: Path) -> None:
    device = prompter(tiny_bundle, template="{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}")
    assert device.render([USER]) == USER["content"]
    with pytest.raises(PromptError, match="message 1: the role 'system': the chat template makes no use of this"):
        device.render([{"role": "system", "content": "Be brief."}, USER])


def test_raw_text_starts_with_bos_where_training_put_it(tiny_bundle: Path) -> None:
    plain = prompter(tiny_bundle, bos_id=None).text_ids("turn on")
    assert prompter(tiny_bundle, bos_id=0).text_ids("turn on") == [0, *plain]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "empty"),
        ([{"role": "user", "content": " \n"}], "the prompt is empty"),
        ([{"role": "user", "content": "\udcff"}], "not valid UTF-8"),
    ],
)
def test_messages_that_say_nothing_are_refused(tiny_bundle: Path, messages: list, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        prompter(tiny_bundle).render(messages)


def test_what_a_template_refuses_is_one_line(tiny_bundle: Path) -> None:
    template = "{% for m in messages %}\n{{ raise_exception('no system role') }}{% endfor %}"
    with pytest.raises(PromptError, match=r"refuses these messages: no system role$"):
        prompter(tiny_bundle, template=template).render([USER])


def test_without_a_template_there_is_no_rendering(tiny_bundle: Path) -> None:
    with pytest.raises(PromptError, match="has no chat template"):
        prompter(tiny_bundle, template=None).render([USER])


def byte_level() -> tokenizers.Tokenizer:
    """One token a byte, as byte-level BPE writes them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(models.BPE({piece: i for i, piece in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def byte_fallback() -> tokenizers.Tokenizer:
    """Words with a leading-space mark and one token for each other byte, as SentencePiece models have them."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghij", "▁a", "▁b", "▁ab"]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(
            {p: i for i, p in enumerate(pieces)}, [("▁", "a"), ("▁", "b")], byte_fallback=True, unk_token="<unk>"
        )
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
def test_streamed_text_equals_the_text_decoded_at_once(make: Any) -> None:
    tokenizer = make()
    rng = random.Random(0)
    texts = ["é日本🙂 a", "ab ab\n  ba 🙂🙂", "a", "👩‍👩‍👧 b"]
    texts += ["".join(rng.choices("ab é日🙂\n", k=rng.randrange(1, 40))) for _ in range(200)]
    for text in texts:
        ids = tokenizer.encode(text).ids
        stream = TextStream(tokenizer)
        pieces = [stream.push(token_id) for token_id in ids] + [stream.flush()]
        assert "".join(pieces) == tokenizer.decode(ids)


def test_bytes_that_are_no_characters_come_out_in_the_end() -> None:
    tokenizer = byte_level()
    rng = random.Random(0)
    for _ in range(200):
        ids = rng.choices(range(256), k=rng.randrange(1, 40))
        stream = TextStream(tokenizer)
        assert "".join([*(stream.push(token_id) for token_id in ids), stream.flush()]) == tokenizer.decode(ids)


def test_a_character_of_many_tokens_comes_out_whole() -> None:
    tokenizer = byte_level()
    stream = TextStream(tokenizer)
    pieces = [stream.push(token_id) for token_id in tokenizer.encode("a🙂b").ids]
    assert pieces == ["a", "", "", "", "🙂", "b"]


def test_a_tokenizer_that_pads_and_truncates_is_stopped_from_it(tiny_bundle: Path, tmp_path: Path) -> None:
    values = json.loads((tiny_bundle / "tokenizer.json").read_text(encoding="utf-8"))
    values["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(values), encoding="utf-8")
    bundle = dataclasses.replace(open_bundle(tiny_bundle), path=tmp_path)
    assert len(Prompter(bundle).text_ids("turn on the lamp in the kitchen")) > 3
