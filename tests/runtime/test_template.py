"""Constructs of chat templates: what the device writes, and what transformers does. edgetune/runtime/template.py."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from edgetune.errors import PromptError
from edgetune.runtime.habits import forgets_reasoning, habits, writes_reasoning, writes_system, writes_tools
from edgetune.runtime.template import ChatTemplate

SYSTEM = {"role": "system", "content": " Be brief. "}
USER = {"role": "user", "content": "Say 'hi' & <go>\n日本 {{ x }}"}
ANSWER = {"role": "assistant", "content": "<think>\nso\n</think>\n\nhi there"}
MORE = {"role": "user", "content": "once more /no_think"}
TALK = [SYSTEM, USER, ANSWER, MORE]
CALL = {"id": "a1b2c3d4e", "type": "function", "function": {"name": "lamp", "arguments": {"room": "bäth", "n": 2}}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "name": "lamp", "tool_call_id": "a1b2c3d4e", "content": '{"ok": true}'}
TOOL = {
    "type": "function",
    "function": {
        "name": "lamp",
        "description": "Switch a <lamp>",
        "parameters": {"type": "object", "properties": {"room": {"type": "string"}, "n": {"type": "integer"}}},
    },
}
EACH = "{%% for m in messages %%}%s{%% endfor %%}"
CONSTRUCTS = {
    # whitespace
    "newlines after blocks": "{% for m in messages %}\n{{ m.role }}\n{% endfor %}\nend\n",
    "indented blocks": "{% for m in messages %}\n    {% if m.role == 'user' %}\n  U\n    {% endif %}\n{% endfor %}",
    "minus": "{% for m in messages -%}\n\n  {{- m.role -}}  \n{%- endfor %}\n\n",
    "plus": "  {%+ if true %}a{% endif +%}\n  b",
    "comments": "a {# note #}\n{#- another -#}\n  b",
    "carriage returns": "{% for m in messages %}\r\n{{ m.role }}\r\n{% endfor %}",
    "raw": "{% raw %}{{ not }} {% this %}{% endraw %}{{ messages | length }}",
    "quoted tags": "{{ '{% if' }}{{ '}}' }}{% if '%}' == '%}' %}y{% endif %}",
    "line statements are text": "# for m in messages\n## no",
    # strings
    "trim": EACH % "[{{ m.content | trim }}]",
    "strip": EACH % "[{{ m.content.strip() }}]",
    "strip of characters": EACH % "[{{ m.content.strip(' \\n.') }}]",
    "lstrip and rstrip": EACH % "[{{ m.content.lstrip('< ').rstrip('\\n') }}]",
    "split and last": EACH % "[{{ m.content.split('</think>')[-1].lstrip('\\n') }}]",
    "split once": EACH % "[{{ m.content.split(' ', 1) | last }}]",
    "rsplit and partition": EACH % "[{{ m.content.rsplit(' ', 1)[0] }}{{ m.content.partition('</think>')[2] }}]",
    "splitlines": EACH % "{% for line in m.content.splitlines() %}[{{ line }}]{% endfor %}",
    "replace": EACH % "{{ m.content.replace('/no_think', '') }}{{ m.content | replace('i', 'o') }}",
    "startswith and endswith": EACH % "{{ m.content.startswith('<think>') }}{{ m.content.endswith(('k', '. ')) }}",
    "find, index and count": EACH % "{{ m.content.find('i') }} {{ m.content.count('i') }}",
    "cases": EACH % "{{ m.role.upper() }}{{ m.role.title() }}{{ m.role | capitalize }}{{ m.role | title }}",
    "slices": EACH % "{{ m.content[:3] }}|{{ m.content[-3:] }}|{{ m.content[::-1] }}",
    "tilde": EACH % "{{ '<|' ~ m.role ~ '|>' ~ loop.index }}",
    "times": "{{ '=' * 5 }}{{ '-' * 0 }}",
    "percent": EACH % "{{ '%s: %05.1f' % (m.role, loop.index) }}",
    "format": EACH % "{{ '{0}-{1:>3}'.format(m.role, loop.index) }}{{ '%s' | format(m.role) }}",
    "join": "{{ messages | map(attribute='role') | join(', ') }}{{ ', '.join(['a', 'b']) }}",
    "escapes": "{{ 'a\\\\b\\t\\'é—\\u00e9\\n' }}",
    "escape filter": EACH % "{{ m.content | e }}{{ m.content | escape | safe }}",
    "indent and wordcount": EACH % "{{ m.content | indent(2) }}{{ m.content | wordcount }}",
    "isdigit": "{{ '12'.isdigit() }}{{ 'a1'.isalpha() }}{{ ' '.isspace() }}",
    "center and truncate": "{{ 'ab' | center(6) }}{{ 'abcdefghij' | truncate(6) }}",
    "striptags and urlize": EACH % "{{ m.content | striptags }}",
    # tests and membership
    "in a string": EACH % "{{ 'think' in m.content }}{{ 'lamp' not in m.content }}",
    "in what is piped": EACH % "{% if '</think>' in m.content | trim %}T{% endif %}",
    "in brackets": EACH % "{% if ('hi' in m.content) and not ('go' in m['content']) %}T{% endif %}",
    "variable in a string": EACH % "{% set word = 'hi' %}{{ word in m.content }}",
    "in lists and dicts": EACH % "{{ m.role in ['user', 'tool'] }}{{ 'name' in m }}{{ 'content' in m.keys() }}",
    "is string, mapping, iterable": EACH % "{{ m.content is string }}{{ m is mapping }}{{ m.content is iterable }}",
    "is sequence, number, boolean": "{{ messages is sequence }}{{ 1 is number }}{{ true is boolean }}{{ 1 is float }}",
    "is none, defined": EACH % "{{ m.name is none }}{{ m.name is defined }}{{ m.name is undefined }}",
    "is true, false": "{{ true is true }}{{ 0 is false }}{{ add_generation_prompt is sameas true }}",
    "is odd, divisibleby": EACH % "{{ loop.index is odd }}{{ loop.index is divisibleby 2 }}",
    "is equalto, in, filter": EACH % "{{ m.role is eq 'user' }}{{ m.role is in ['user'] }}{{ 'trim' is filter }}",
    "comparisons": EACH % "{{ 1 < loop.index <= 3 }}{{ loop.index != 2 }}",
    "tools and documents": "{{ tools is none }}{{ tools is defined }}{{ documents is none }}{{ tools | default('x') }}",
    "undefined": "[{{ nothing }}][{{ nothing is defined }}][{{ nothing | default('d') }}]",
    "undefined attribute": EACH % "[{{ m.tool_calls }}][{{ m.nothing | default('d', true) }}]",
    # control
    "ternary": EACH % "{{ 'A' if m.role == 'user' else 'B' }}{{ 'X' if m.role == 'user' }}",
    "elif": EACH % "{% if m.role == 'a' %}1{% elif m.role == 'user' %}2{% else %}3{% endif %}",
    "and, or, not": "{{ '' or 'b' }}{{ 'a' and 'c' }}{{ not '' }}",
    "for with a condition": "{% for m in messages if m.role != 'system' %}{{ loop.index }}{{ m.role }}{% endfor %}",
    "for with else": "{% for m in messages if m.role == 'tool' %}t{% else %}none{% endfor %}",
    "loop's counters": EACH
    % "{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.length }}{{ loop.depth }}",
    "loop's first and last": EACH % "{% if loop.first %}F{% endif %}{% if loop.last %}L{% endif %}",
    "loop's neighbours": EACH % "{{ loop.previtem.role if loop.previtem }}{{ loop.nextitem is defined }}",
    "loop cycles and changes": EACH % "{{ loop.cycle('a', 'b') }}{{ loop.changed(m.role) }}",
    "break": EACH % "{{ m.role }}{% if m.role == 'user' %}{% break %}{% endif %}",
    "continue": EACH % "{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.role }}",
    "nested loops": EACH % "{% for c in m.role %}{{ loop.index }}{{ c }}{% endfor %}",
    "recursive loop": "{% for x in [[1, [2]], 3] recursive %}{{ loop(x) if x is iterable else x }};{% endfor %}",
    "range": "{% for i in range(1, 6, 2) %}{{ i }}{% endfor %}{{ range(3) | list }}",
    "tuples unpacked": "{% for a, b in [(1, 2), (3, 4)] %}{{ a + b }}{% endfor %}",
    "items": EACH % "{% for k, v in m.items() %}{{ k }}={{ v }};{% endfor %}",
    "raise where nothing is wrong": "{% if messages | length > 9 %}{{ raise_exception('long') }}{% endif %}ok",
    # assignments
    "set in a loop": "{% set x = 1 %}{% for m in messages %}{% set x = 2 %}{% endfor %}{{ x }}",
    "set of a block": "{% set intro %}Be {{ messages[0].role }}.{% endset %}{{ intro }}{{ intro | upper }}",
    "set of a block, filtered": "{% set x | upper %}abc{% endset %}{{ x }}",
    "namespace": "{% set ns = namespace(n=0, t='') %}" + EACH % "{% set ns.n = ns.n + 1 %}" + "{{ ns.n }}{{ ns.t }}",
    "with": "{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}",
    "slices of messages": "{% for m in messages[1:] %}{{ m.role }}{% endfor %}{{ messages[-1].role }}",
    "reversed messages": "{% for m in messages[::-1] %}{{ m.role }}{% endfor %}{{ (messages | reverse | first).role }}",
    "messages set anew": "{% set messages = messages[1:] %}" + EACH % "{{ m.role }}",
    "dict's methods": EACH % "{{ m.get('name', 'nobody') }}{{ m.keys() | list }}{{ m.values() | length }}",
    "lists": "{% set p = ['a'] + ['b'] %}{{ p | join }}{{ p }}{{ {'k': ['v', 1, true, none]} }}",
    "dicts": "{% set d = {'user': {'x': 'U'}, 'b': 2} %}{{ d.user.x }}{{ d['user']['x'] }}{{ d | length }}",
    "dict()": "{{ dict(a=1, b='c') }}{{ dict({'x': 1}, y=2) }}{{ dict.fromkeys(['a'], 0) }}",
    "do-like assignment": "{% set _ = namespace(done=true) %}{{ _.done }}",
    # filters of lists
    "first, last, length": "{{ (messages | first).role }}{{ (messages | last).role }}{{ messages | count }}",
    "selectattr and rejectattr": "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}"
    "{{ messages | rejectattr('role', 'in', ['user']) | map(attribute='role') | list }}",
    "select, reject, map": "{{ [1, 2, 3] | select('odd') | list }}{{ [1, 2] | reject('odd') | map('string') | list }}",
    "sort, unique, dictsort": "{{ messages | map(attribute='role') | unique | sort | join('-') }}"
    "{{ {'b': 1, 'a': 2} | dictsort }}",
    "groupby and batch": "{% for k, g in messages | groupby('role') %}{{ k }}{{ g | length }}{% endfor %}"
    "{{ [1, 2, 3] | batch(2) | list }}",
    "min, max, sum": "{{ [3, 1] | min }}{{ [3, 1] | max }}{{ [3, 1] | sum }}",
    "items filter": "{% for k, v in {'a': 1} | items %}{{ k }}{{ v }}{% endfor %}",
    # numbers
    "arithmetic": "{{ 7 // 2 }} {{ 7 / 2 }} {{ 7 % 3 }} {{ 2 ** 5 }} {{ 1.0 }} {{ 3.50 }} {{ -2 | abs }}",
    "int, float, round": "{{ '3' | int + 1 }}{{ '1.5' | float }}{{ 2.567 | round(1) }}{{ 'x' | int(9) }}",
    "constants": "{{ true }}{{ False }}{{ none }}{{ None }}",
    # macros
    "macro": "{% macro turn(m, tail='<|end|>') %}{{ m.role }}{{ tail }}{% endmacro %}" + EACH % "{{ turn(m) }}",
    "macro by name": "{% macro t(a, b=2) %}{{ a }}{{ b }}{% endmacro %}{{ t(1) }}{{ t(b=3, a=4) }}",
    "macro with more": "{% macro t() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ t(1, 2, x=3) }}",
    "call": "{% macro w() %}[{{ caller() }}]{% endmacro %}{% call w() %}in{% endcall %}",
    "filter block": "{% filter upper %}{{ messages[0].role }}{% endfilter %}",
    "recursive macro": "{% macro f(n) %}{{ n }}{% if n %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}",
    "block": "{% block body %}inside{% endblock %}",
    "generation": EACH
    % "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<e>\n{% endgeneration %}{% else %}u{% endif %}",
    # what transformers adds
    "tojson": EACH % "{{ m.content | tojson }}{{ m | tojson }}",
    "tojson with settings": "{{ {'b': 'é<&>', 'a': [1]} | tojson(indent=2) }}{{ {'b': 1} | tojson(sort_keys=true) }}"
    "{{ {'b': 'é'} | tojson(ensure_ascii=true, separators=(',', ':')) }}",
    "special tokens": "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ unk_token }}{{ sep_token is defined }}",
    "date": "{{ strftime_now('%d %b %Y') | length }}{% if strftime_now is defined %}!{% endif %}",
    # tools, calls, reasoning
    "tools": "{% if tools %}{{ tools | tojson(indent=4) }}{{ tools | map(attribute='type') | list }}{% endif %}",
    "tool schemas walked": "{% for t in tools or [] %}{% for k, v in t.function.parameters.properties.items() %}"
    "{{ k }}: {{ v.type }}{{ ',' if not loop.last }}{% endfor %}{% endfor %}",
    "calls": EACH
    % "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c['function'] | tojson }}{% endfor %}",
    "calls asked for by key": EACH % "{% if 'tool_calls' in m %}C{% elif 'content' in m %}{{ m.content }}{% endif %}",
    "content beside calls": EACH % "{{ m.content is none }}{{ m.content is defined }}{{ m.content or 'empty' }}",
    "results": EACH % "{% if m.role == 'tool' %}{{ m.name }}{{ m.tool_call_id }}{{ m.content | tojson }}{% endif %}",
    "reasoning": EACH % "{{ m.reasoning_content }}|{{ m.thinking }}|{{ m.reasoning }}",
    "items of a message": EACH % "{{ m | items | list }}",
}
REFUSED = {
    "append": "{% set p = [] %}{% set _ = p.append(1) %}{{ p }}",
    "a dict's update": "{% set d = {} %}{{ d.update({'a': 1}) }}",
    "underscores": "{{ messages.__class__.__mro__ }}",
    "a private name in a namespace": "{% set ns = namespace(_x=1) %}{{ ns._x }}",
    "what is undefined, called": "{{ nothing() }}",
    "what is undefined, added": "{{ 'a' + nothing }}",
    "an exception": "{{ raise_exception('roles must alternate') }}",
    "an unknown filter": "{{ messages | nofilter }}",
    "a template that is none": "{% if %}",
    "an import": "{% import 'x' as x %}",
}
CONVERSATIONS: dict[str, tuple[Sequence[dict[str, Any]], list[dict[str, Any]] | None]] = {
    "talk": (TALK, None),
    "calls": ([USER, CALLING, RESULT, {**ANSWER, "content": "done", "reasoning_content": "so"}, MORE], [TOOL]),
}


@pytest.fixture(scope="module")
def hf_tokenizer(tiny_base: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_base)


def theirs(tokenizer: Any, source: str, talk: Any, *, add: bool = True) -> str:
    messages, tools = talk
    return tokenizer.apply_chat_template(
        messages, tools=tools, chat_template=source, tokenize=False, add_generation_prompt=add
    )


def ours(tokenizer: Any, source: str, talk: Any, *, add: bool = True) -> str:
    template = ChatTemplate(source, tuple(tokenizer.special_tokens_map.items()))
    return template.render(talk[0], tools=talk[1], add_generation_prompt=add)


@pytest.mark.parametrize("talk", CONVERSATIONS)
@pytest.mark.parametrize("name", CONSTRUCTS)
def test_a_construct_writes_what_transformers_writes(hf_tokenizer: Any, name: str, talk: str) -> None:
    try:
        wanted = theirs(hf_tokenizer, CONSTRUCTS[name], CONVERSATIONS[talk])
    except Exception:  # what strings have, a message without content has not
        assert talk == "calls"
        with pytest.raises(PromptError):
            ours(hf_tokenizer, CONSTRUCTS[name], CONVERSATIONS[talk])
        return
    assert ours(hf_tokenizer, CONSTRUCTS[name], CONVERSATIONS[talk]) == wanted
    if talk == "talk":
        assert ours(hf_tokenizer, CONSTRUCTS[name], CONVERSATIONS[talk], add=False) == theirs(
            hf_tokenizer, CONSTRUCTS[name], CONVERSATIONS[talk], add=False
        )


@pytest.mark.parametrize("name", REFUSED)
def test_what_transformers_refuses_is_refused_in_one_line(hf_tokenizer: Any, name: str) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011  of whatever kind
        theirs(hf_tokenizer, REFUSED[name], (TALK, None))
    with pytest.raises(PromptError, match=r"the chat template (refuses these messages|cannot be read): .") as refused:
        ours(hf_tokenizer, REFUSED[name], (TALK, None))
    assert "\n" not in str(refused.value)


def test_a_template_that_cannot_be_read_is_named_with_its_line() -> None:
    with pytest.raises(PromptError, match=r"cannot be read: .*endfor.* \(line 3\); mend chat_template.jinja"):
        ChatTemplate("a\n\n{% endfor %}").render(TALK)


def test_the_date_is_todays(monkeypatch: pytest.MonkeyPatch) -> None:
    class Then(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return datetime.datetime(2031, 2, 3, tzinfo=tz)

    monkeypatch.setattr(datetime, "datetime", Then)
    assert ChatTemplate("{{ strftime_now('%d %b %Y') }}").render(TALK) == "03 Feb 2031"


QWEN_LIKE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<{{ m.role }}>{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}<end>{% endfor %}"
)
TEXT_ARGUMENTS = (
    "{% for m in messages %}{% if m.content is not defined %}{% for c in m.tool_calls %}{{ c.function.name + '\n' + "
    "c.function.arguments }}{% endfor %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
CONTENT_FIRST = (
    "{% for m in messages %}{{ m.role + m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}"
    "{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
)
DEAF = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"


@pytest.mark.parametrize(
    ("source", "has", "arguments", "content"),
    [
        (QWEN_LIKE, True, {"room": "bäth", "n": 2}, None),
        (TEXT_ARGUMENTS, True, '{"room": "bäth", "n": 2}', None),
        (CONTENT_FIRST, True, {"room": "bäth", "n": 2}, ""),
    ],
)
@pytest.mark.parametrize("given", [CALL["function"]["arguments"], '{"room": "bäth", "n": 2}'])
def test_calls_are_in_the_form_that_the_template_takes(
    source: str, has: bool, arguments: Any, content: str | None, given: Any
) -> None:
    template = ChatTemplate(source)
    call = {**CALL, "function": {"name": "lamp", "arguments": given}}
    (fitted,) = template.fitted([{**CALLING, "tool_calls": [call]}])
    assert habits(template).writes_calls == has
    assert (fitted["tool_calls"][0]["function"]["arguments"], fitted["content"]) == (arguments, content)
    assert '"room": "bäth"' in template.render([USER, fitted])


@pytest.mark.parametrize(
    ("messages", "tools", "what"),
    [
        ([USER], [TOOL], "tools: the chat template makes no use of this; leave them out, or give a chat template"),
        ([USER, CALLING], None, "message 2: tool_calls: the chat template makes no use of this; write the call"),
        (
            [USER, {**ANSWER, "reasoning_content": "so"}],
            None,
            "message 2: reasoning_content: the chat template",
        ),
    ],
)
def test_what_a_template_makes_no_use_of_is_refused_by_name(messages: list, tools: list | None, what: str) -> None:
    with pytest.raises(PromptError, match=what):
        ChatTemplate(DEAF).refuse_unwritten(messages, tools)
    ChatTemplate(DEAF).refuse_unwritten([USER, RESULT, {"role": "developer", "content": "x"}], None)


def test_text_beside_calls_that_the_template_drops_is_refused_where_it_would_be_learned() -> None:
    both = [USER, {**CALLING, "content": "I call it."}]
    ChatTemplate(QWEN_LIKE).refuse_dropped_content(both)
    ChatTemplate(TEXT_ARGUMENTS).refuse_dropped_content([USER, CALLING])
    with pytest.raises(PromptError, match="message 2: the content beside tool_calls: the chat template makes no use"):
        ChatTemplate(
            "{% for m in messages %}{{ m.tool_calls | tojson if m.tool_calls else m.content }}{% endfor %}"
        ).refuse_dropped_content(both)


def test_a_role_that_the_template_drops_is_refused_or_becomes_one_that_it_knows() -> None:
    deaf = ChatTemplate("{% for m in messages if m.role in ['system', 'user'] %}{{ m.content }}{% endfor %}")
    with pytest.raises(PromptError, match="message 2: the role 'tool': the chat template makes no use of this"):
        deaf.refuse_unwritten([USER, RESULT], None)
    said = {"role": "developer", "content": "be brief"}
    assert deaf.fitted([said])[0]["role"] == "system"
    assert ChatTemplate(DEAF).fitted([said])[0]["role"] == "developer"


@pytest.mark.parametrize(
    ("role", "key", "value"),
    [
        ("assistant", "refusal", "I cannot."),
        ("assistant", "thought", "so"),
        ("system", "tools", [TOOL]),
        ("tool", "is_error", True),
        ("user", "prefix", True),
    ],
)
def test_a_key_of_a_message_is_refused_where_the_template_does_not_read_it(role: str, key: str, value: Any) -> None:
    talk = [USER, {"role": role, "content": "x", key: value}]
    with pytest.raises(PromptError, match=f"message 2: {key}: the chat template makes no use of this; write it into"):
        ChatTemplate(QWEN_LIKE).refuse_unwritten(talk, None)
    ChatTemplate(QWEN_LIKE.replace("{{ m.content", f"{{{{ m.{key} }}}}{{{{ m.content")).refuse_unwritten(talk, None)
    quiet = {"role": role, "content": "x", key: type(value)(), "name": "bob", "timestamp": 3}
    ChatTemplate(QWEN_LIKE).refuse_unwritten([USER, quiet], None)


def test_a_key_that_is_read_beside_calls_alone_or_of_some_kind_of_value_alone_is_read() -> None:
    plan = {"role": "assistant", "content": None, "tool_plan": "look", "tool_calls": [CALL]}
    beside = QWEN_LIKE.replace("{% for c in", "{% if m.tool_calls %}{{ m.tool_plan }}{% endif %}{% for c in")
    ChatTemplate(beside).refuse_unwritten([USER, plan], None)
    listed = QWEN_LIKE.replace("{% for c in", "{% for t in m.docs or [] %}{{ t.function.name }}{% endfor %}{% for c in")
    ChatTemplate(listed).refuse_unwritten([{**USER, "docs": [TOOL]}], None)
    with pytest.raises(PromptError, match="message 2: tool_plan: the chat template makes no use of this"):
        ChatTemplate(QWEN_LIKE).refuse_unwritten([USER, plan], None)


ASKS_FOR_IDS = (
    "{% for m in messages %}{% for c in m.tool_calls or [] %}{% if not c.id or c.id | length != 9 %}"
    "{{ raise_exception('ids of 9 letters') }}{% endif %}{{ c.function | tojson }}{{ c.id }}{% endfor %}"
    "{% if m.role == 'tool' and (not m.tool_call_id or m.tool_call_id | length != 9) %}"
    "{{ raise_exception('ids of 9 letters') }}{% endif %}<{{ m.role }}>{{ m.content }}{{ m.tool_call_id }}{% endfor %}"
)


@pytest.mark.parametrize(
    "ids", [("call_one", "call_two"), (None, None), ("abcdefgh1", "abcdefgh2"), ("call_one", None)]
)
def test_where_a_template_asks_for_ids_of_calls_they_and_their_results_have_them(ids: tuple) -> None:
    calls = [{**CALL, "id": own} for own in ids]
    for call, own in zip(calls, ids, strict=True):
        if own is None:
            del call["id"]
    order = (0, 1) if None in ids else (1, 0)
    results = [{"role": "tool", "content": "ok", **({"tool_call_id": ids[n]} if ids[n] else {})} for n in order]
    talk = [USER, {**CALLING, "tool_calls": [calls[0]]}, {**CALLING, "tool_calls": [calls[1]]}, *results]
    fitted = ChatTemplate(ASKS_FOR_IDS).fitted(talk)
    made = [message["tool_calls"][0]["id"] for message in fitted[1:3]]
    assert len(set(made)) == 2
    assert [message["tool_call_id"] for message in fitted[3:]] == [made[n] for n in order]
    assert ids[0] != "abcdefgh1" or made == list(ids)
    assert ChatTemplate(ASKS_FOR_IDS).render(fitted).count(made[0]) == 2
    assert ChatTemplate(ASKS_FOR_IDS).fitted(talk[:3]) == fitted[:3]
    assert talk[1]["tool_calls"][0] is calls[0]
    assert calls[0].get("id") == ids[0]
    again = [message for _ in range(3) for message in (talk[1], results[0])]
    repeated = [m["tool_calls"][0]["id"] for m in ChatTemplate(ASKS_FOR_IDS).fitted(again)[::2]]
    assert len(set(repeated)) == (3 if ids[0] != "abcdefgh1" else 1)


def test_other_templates_have_the_ids_that_stand_in_the_data() -> None:
    talk = [USER, {**CALLING, "tool_calls": [{**CALL, "id": "call_one"}]}, {**RESULT, "tool_call_id": "call_one"}]
    assert ChatTemplate(QWEN_LIKE).fitted(talk) == talk
    absent = [{key: value for key, value in CALL.items() if key != "id"}]
    assert "id" not in ChatTemplate(QWEN_LIKE).fitted([{**CALLING, "tool_calls": absent}])[0]["tool_calls"][0]
    long_ones = ASKS_FOR_IDS.replace(" or c.id | length != 9", "").replace(" or m.tool_call_id | length != 9", "")
    assert ChatTemplate(long_ones).fitted(talk) == talk


NO_SYSTEM = "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endfor %}"
LED = "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}" + NO_SYSTEM
BESIDE_THE_LAST = (
    "{% for m in messages if m.role != 'system' %}{% if loop.last and m.role == 'user' %}{{ messages[0].content }}"
    "{% endif %}{{ m.content }}{% endfor %}"
)
UNTIED = "{% if tools %}{{ tools | tojson }}{% elif messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}"


@pytest.mark.parametrize(
    ("source", "messages", "tools", "number"),
    [
        (NO_SYSTEM, [SYSTEM, USER], None, 1),
        (LED, [USER, ANSWER, SYSTEM, MORE], None, 3),
        (BESIDE_THE_LAST, [SYSTEM, USER, ANSWER], None, 1),
        (UNTIED + NO_SYSTEM, [SYSTEM, USER], [TOOL], 1),
    ],
)
@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_system_message_that_the_template_loses_is_refused(
    source: str, messages: list, tools: list | None, number: int, role: str
) -> None:
    source = source.replace("m.role != 'system'", "m.role in ['user', 'assistant']")
    talk = [{**message, "role": role} if message is SYSTEM else message for message in messages]
    with pytest.raises(
        PromptError, match=f"message {number}: the role '{role}': the chat template makes no use of .*;"
    ):
        ChatTemplate(source).refuse_unwritten(talk, tools)


def test_a_system_message_that_is_written_or_says_nothing_or_that_the_template_refuses_is_let_through() -> None:
    ChatTemplate(LED).refuse_unwritten([SYSTEM, USER, ANSWER, MORE], None)
    ChatTemplate(BESIDE_THE_LAST).refuse_unwritten([SYSTEM, USER, ANSWER, MORE], None)
    ChatTemplate(UNTIED + NO_SYSTEM).refuse_unwritten([SYSTEM, USER], None)
    ChatTemplate(NO_SYSTEM).refuse_unwritten([{"role": "system", "content": " "}, USER], None)
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('none') }}{% endif %}" + NO_SYSTEM
    ChatTemplate(refusing).refuse_unwritten([SYSTEM, USER], None)


@pytest.mark.parametrize(
    "form", ["m.content | upper", "m.content | replace('a', 'b') | replace('z', '')", "m.content[::-1]"]
)
def test_what_a_template_writes_in_another_form_is_written(form: str) -> None:
    """Capitals, and letters that are replaced: no word of the message stands in the text as it was."""
    source = f"{{% for m in messages %}}<{{{{ m.role }}}}>{{{{ {form} }}}}{{{{ m.thinking | upper }}}}{{% endfor %}}"
    template = ChatTemplate(source)
    template.refuse_unwritten([SYSTEM, USER, {**ANSWER, "thinking": "so"}, USER], None)
    assert writes_system(template, "developer", is_first=True, is_asked=True, has_tools=False)
    assert writes_reasoning(template, "thinking")
    assert not writes_reasoning(template, "thoughts")


def test_what_a_template_does_with_tools_and_reasoning_is_found() -> None:
    last = ChatTemplate("{% for m in messages %}{% if loop.last %}{{ m.reasoning_content }}{% endif %}{% endfor %}")
    every = ChatTemplate("{% for m in messages %}{{ m.reasoning_content }}{% endfor %}")
    assert writes_tools(ChatTemplate(QWEN_LIKE))
    assert not writes_tools(ChatTemplate(DEAF))
    assert [writes_reasoning(t, "reasoning_content") for t in (last, every, ChatTemplate(DEAF))] == [True, True, False]
    assert [forgets_reasoning(t, "reasoning") for t in (last, every, ChatTemplate(DEAF))] == [True, False, False]
