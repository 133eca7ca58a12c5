"""Self-supervised chat tasks made from plain texts: copy exact spans of a short utterance into JSON. Feeds `pretrain`.

No labelled data is used. Every value, name and sentence is drawn from the training documents; keys, cue phrases and
answers are made here, so a task's right answer can always be read off its prompt.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from edgetune.assets.nano.corpus import ASSISTANT, BOS, SYSTEM, USER, Document, render_chat

Turns = list[tuple[str, str]]
LOWER_CASE_SHARE = 0.7
SPOKEN_SOURCES = ("snips", "common-voice_sentences", "tatoeba_english-sentences")


def _options(text: str) -> list[str]:
    return text.split("|")


# A key and the cue phrases that introduce its value.
FIELDS: dict[str, list[str]] = {
    "name": ["called {}", "named {}", "by the name of {}", "whose name is {}"],
    "artist": ["by {}", "by the artist {}", "from the singer {}", "performed by {}"],
    "song": ["the song {}", "the track {}", "the tune {}"],
    "list": ["to my {} list", "to the list {}", "in my {} list", "onto the {} collection"],
    "place": ["in {}", "near {}", "around {}", "close to {}", "not far from {}"],
    "city": ["in the city of {}", "in the town of {}", "over in {}"],
    "time": ["at {}", "around {}", "before {}", "after {}"],
    "date": ["on {}", "for {}", "the day is {}"],
    "people": ["for {} people", "for a party of {}", "for a group of {}", "with {} guests"],
    "rating": ["{} stars", "{} points", "a score of {}", "a rating of {}"],
    "app": ["on {}", "using {}", "through {}", "with the {} app"],
    "room": ["in the {} room", "in the {}", "upstairs in the {}"],
    "device": ["the {} device", "my {}", "the {} switch"],
    "temperature": ["to {} degrees", "at {} degrees"],
    "duration": ["for {} minutes", "for {} hours", "lasting {}"],
    "price": ["for {} dollars", "at a price of {}", "that costs {}"],
    "topic": ["about {}", "on the subject of {}", "regarding {}"],
    "author": ["written by {}", "from the author {}"],
    "title": ["titled {}", "the book {}", "entitled {}", "the movie {}", "the show {}"],
    "genre": ["some {} music", "in the {} genre", "{} style"],
    "food": ["that serves {}", "with {} on the menu", "to eat {}"],
    "message": ["saying {}", "that says {}", "with the message {}"],
    "person": ["to {}", "for my friend {}", "with {}", "together with {}"],
    "size": ["a {} size one", "in size {}"],
    "owner": ["belonging to {}", "owned by {}", "of {}"],
    "origin": ["from {}", "starting at {}", "coming from {}"],
    "destination": ["to {}", "heading for {}", "all the way to {}"],
    "number": ["number {}", "item {}", "no {}"],
    "category": ["of type {}", "in category {}", "of the {} kind"],
    "year": ["from {}", "from the year {}", "made in {}"],
    "state": ["when it is {}", "so that it is {}", "if it gets {}"],
    "colour": ["in {}", "painted {}", "of colour {}"],
    "count": ["{} times", "{} of them", "a total of {}"],
    "part": ["chapter {}", "part {}", "the {} part"],
    "reason": ["because of {}", "due to {}", "on account of {}"],
}
NUMERIC = {"people", "rating", "temperature", "duration", "price", "number", "count", "part", "year"}
GENERIC_CUES = _options(
    "{key} is {}|with {key} {}|the {key} {}|{} as the {key}|{key}: {}|{key} = {}|{} for the {key}|"
    "my {key} is {}|the {key} should be {}|use {} as {key}|{} {key}"
)
VERBS = _options(
    "play|find|add|book|show|search|get|rate|give|put|set|turn on|open|call|send|order|make|tell|look up|"
    "start|stop|close|read|check|remind|bring|buy|move|reserve|list|pick|save|watch|write|cancel|change|count|"
    "take|create"
)
OPENERS = _options(
    "||||please |can you |could you |i want to |i'd like to |i need to |hey, |would you |let's |help me |"
    "we should |go and |ok, |will you |it is time to "
)
CLOSERS = _options("|||| please| now| right away| for me| if you can| thanks| today|?|.|!")
ARTICLES = _options("||a |the |my |this |another |some |me a |me the ")
WRAPPERS = [
    ("intent", "slots"),
    ("intent", "slots"),
    ("intent", "entities"),
    ("action", "fields"),
    ("action", "args"),
    ("name", "arguments"),
    ("task", "details"),
    ("tool", "parameters"),
    ("command", "values"),
    ("", ""),
]
DAYS = _options(
    "monday|tuesday|wednesday|thursday|friday|saturday|sunday|tomorrow|today|next week|tonight|this weekend|"
    "christmas|new year's day|this evening|in two days|the day after tomorrow"
)
MONTHS = _options("january|february|march|april|may|june|july|august|september|october|november|december")
NUMBER_WORDS = _options(
    "one|two|three|four|five|six|seven|eight|nine|ten|twelve|twenty|zero|half a dozen|a hundred|several|a few|"
    "a couple of"
)
SYLLABLES = _options("ka|zor|mi|len|tu|rav|shi|bo|qui|dax|fen|ul|pra|nyx|oth|ger")


@dataclass(frozen=True)
class Pool:
    """What tasks are made of: short sentences, plain words and capitalised names, all from the training documents."""

    spoken: list[str]
    prose: list[str]
    words: list[str]
    names: list[str]


def make_pool(documents: list[Document]) -> Pool:
    """Sentences of 3 to 25 words, the words of middling frequency, and names of one to three capitalised words."""
    spoken: list[str] = []
    prose: list[str] = []
    counts: dict[str, int] = {}
    names: dict[str, int] = {}
    for document in documents:
        text = re.sub(r"<\|[a-z]+\|>", "\n", document.text)
        is_spoken = document.is_chat or document.source in SPOKEN_SOURCES
        for sentence in re.split(r"\n+|(?<=[.!?])\s+(?=[A-Z])", text):
            words = sentence.split()
            if 3 <= len(words) <= 25:
                (spoken if is_spoken else prose).append(" ".join(words))
        for word in re.findall(r"[A-Za-z]+", text):
            counts[word.lower()] = counts.get(word.lower(), 0) + 1
        for name in re.findall(r"(?<=[a-z,] )[A-Z][a-z]+(?: [A-Z][a-z]+){0,2}", text):
            names[name] = names.get(name, 0) + 1
    plain = sorted(w for w, n in counts.items() if 5 <= n <= 3000 and 3 <= len(w) <= 11)
    return Pool(spoken, prose, plain, sorted(n for n in names if len(n) > 2))


def make_tasks(pool: Pool, seed: int) -> Iterator[str]:
    """Rendered tasks without end; the same pool and seed give the same tasks."""
    rng = random.Random(seed)
    makers, weights = zip(*TASKS.values(), strict=True)
    while True:
        lower = rng.random() < LOWER_CASE_SHARE
        yield BOS + render_chat(rng.choices(makers, weights)[0](rng, pool, lower))


def make_extraction(rng: random.Random, pool: Pool, lower: bool) -> Turns:
    """Utterances made of cue phrases and values -> nested or flat JSON; one style for all turns of a dialogue."""
    wrapper, style = rng.choice(WRAPPERS), rng.choice(["camel", "camel", "snake", "words"])
    schema = _schema(rng, pool, rng.randint(2, 7))
    turns: Turns = []
    if rng.random() < 0.4:
        turns.append((SYSTEM, _schema_prompt(rng, schema, wrapper)))
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        utterance, action, values = _utterance(rng, pool, schema, lower)
        act = _styled(action, style)
        answer = {wrapper[0]: act, wrapper[1]: values} if wrapper[0] else values
        turns += [(USER, utterance), (ASSISTANT, _dump(answer))]
    return turns


def make_frame(rng: random.Random, pool: Pool, lower: bool) -> Turns:
    """A template cut from a real sentence, then sentences that fill it -> the fillers by slot name."""
    words = _sentence(rng, pool, lower).split()
    count = rng.randint(1, min(3, len(words) // 3))
    cuts = sorted(rng.sample(range(len(words) + 1), 2 * count))
    keys = [rng.choice(list(FIELDS) if rng.random() < 0.5 else pool.words) for _ in range(count)]
    if len(set(keys)) < count:
        keys = [f"slot_{i}" for i in range(1, count + 1)]

    def fill(fillers: list[str]) -> str:
        pieces, at = [], 0
        for a, b, filler in zip(cuts[::2], cuts[1::2], fillers, strict=True):
            pieces += [*words[at:a], filler]
            at = b
        return " ".join([*pieces, *words[at:]])

    turns: Turns = []
    if rng.random() < 0.8:
        turns.append((SYSTEM, fill([f"{{{k}}}" for k in keys])))
    for number in range(rng.randint(1, 3)):
        original = number == 0 and rng.random() < 0.5
        fillers = [
            " ".join(words[a:b]) if original else _value(rng, pool, k, lower)
            for a, b, k in zip(cuts[::2], cuts[1::2], keys, strict=True)
        ]
        turns += [(USER, fill(fillers)), (ASSISTANT, _dump(dict(zip(keys, fillers, strict=True))))]
    return turns


def make_span(rng: random.Random, pool: Pool, lower: bool) -> Turns:
    """An exact span of a real sentence, named by its position or its neighbours."""
    sentence = _sentence(rng, pool, lower)
    words = sentence.split()
    i = rng.randrange(len(words) - 1)
    j = rng.randint(i + 1, min(len(words), i + 6))
    n = rng.randint(1, min(6, len(words)))
    before, after, span = words[i - 1] if i else "", words[j] if j < len(words) else "", " ".join(words[i:j])
    kinds = {
        f"the first {n} words": " ".join(words[:n]),
        f"the last {n} words": " ".join(words[-n:]),
        "the first word": words[0],
        "the last word": words[-1],
        "repeat it exactly": sentence,
        f'leave out "{words[i]}"': " ".join(w for w in words if w != words[i]),
    }
    if before and after and words.count(before) == words.count(after) == 1:
        kinds |= {f"the words between {before} and {after}": span, f'what is between "{before}" and "{after}"?': span}
    if before and words.count(before) == 1:
        kinds[f"the word after {before}"] = words[i]
        kinds[f"everything after {before}"] = " ".join(words[i:])
    if after and words.count(after) == 1:
        kinds[f"the word before {after}"] = words[j - 1]
        kinds[f"everything before {after}"] = " ".join(words[:j])
    question = rng.choice(list(kinds))
    key = rng.choice(["answer", "span", "text", "words", "result", "value"])
    return _ask(rng, question, sentence, {key: kinds[question]})


def make_marked(rng: random.Random, pool: Pool, lower: bool) -> Turns:
    """A real sentence with one to three spans marked by quotes or brackets -> the spans, in order."""
    words = _sentence(rng, pool, lower).replace('"', "").split()
    left, right, what = rng.choice(
        [('"', '"', "quotes"), ("[", "]", "brackets"), ("*", "*", "stars"), ("(", ")", "parentheses")]
    )
    cuts = sorted(rng.sample(range(len(words) + 1), min(len(words) + 1, 2 * rng.randint(1, 3)) // 2 * 2))
    spans = []
    for a, b in zip(cuts[::2], cuts[1::2], strict=True):
        spans.append(" ".join(words[a:b]))
        words[a], words[b - 1] = left + words[a], words[b - 1] + right
    return _ask(rng, f"the text in {what}", " ".join(words), {"spans": spans} if rng.random() < 0.5 else spans)


def make_word_list(rng: random.Random, pool: Pool, lower: bool) -> Turns:
    """Each word of a sentence as a JSON list, or numbered, or those that start with a letter."""
    words = _sentence(rng, pool, lower).split()[:14]
    letter = rng.choice(words)[0]
    question, answer = rng.choice(
        [
            ("each word as a list", words),
            ("number the words", {str(i): w for i, w in enumerate(words, 1)}),
            (f"the words that start with {letter}", [w for w in words if w[0] == letter]),
            ("the longest word", {"longest": max(words, key=len)}),
        ]
    )
    return _ask(rng, question, " ".join(words), answer)


def make_names(rng: random.Random, pool: Pool, lower: bool) -> Turns:
    """The capitalised names of an original-case sentence; a lower-case one is asked for a name that was put in."""
    if lower:
        words = _sentence(rng, pool, lower).split()
        name = rng.choice(pool.names).lower()
        at = rng.randrange(len(words) + 1)
        return _ask(rng, "names", " ".join([*words[:at], name, *words[at:]]), {"names": [name]})
    sentence = rng.choice(pool.prose)
    return _ask(rng, "names", sentence, {"names": re.findall(r"(?<=[a-z,;] )[A-Z][a-z]+(?: [A-Z][a-z]+)*", sentence)})


def make_choice(rng: random.Random, pool: Pool, lower: bool) -> Turns:
    """Which of these options occurs in the sentence: a label is copied from the list it is offered in."""
    sentence = _sentence(rng, pool, lower)
    options = [rng.choice(sentence.split()), *(_value(rng, pool, "", lower) for _ in range(rng.randint(1, 5)))]
    answer = options[0]
    rng.shuffle(options)
    question = (
        rng.choice(["which one is in the text?", "choose the option that occurs", "pick one"])
        + " "
        + ", ".join(options)
    )
    return _ask(rng, question, sentence, {rng.choice(["label", "choice", "option"]): answer})


TASKS: dict[str, tuple[Callable[[random.Random, Pool, bool], Turns], float]] = {
    "extraction": (make_extraction, 0.50),
    "frame": (make_frame, 0.18),
    "span": (make_span, 0.15),
    "marked": (make_marked, 0.05),
    "word_list": (make_word_list, 0.04),
    "names": (make_names, 0.04),
    "choice": (make_choice, 0.04),
}


def _schema(rng: random.Random, pool: Pool, size: int) -> dict[str, list[str]]:
    schema: dict[str, list[str]] = {}
    for _ in range(size):
        if rng.random() < 0.6:
            key = rng.choice(list(FIELDS))
            prefix = rng.choice(pool.words) + "_" if rng.random() < 0.15 else ""
            schema[prefix + key] = [c if not prefix else "{key} {}" for c in FIELDS[key]]
        else:
            key = "_".join(rng.choice(pool.words) for _ in range(rng.choice([1, 1, 2])))
            schema[key] = [rng.choice(GENERIC_CUES)]
    return schema


def _schema_prompt(rng: random.Random, schema: dict[str, list[str]], wrapper: tuple[str, str]) -> str:
    shape = f'JSON with "{wrapper[0]}" and "{wrapper[1]}"' if wrapper[0] else "flat JSON"
    lead = rng.choice(["Reply with", "Answer as", "Extract", "Return", "Output"])
    if rng.random() < 0.5:
        cues = "; ".join(
            f"{k}: {cues[0].replace('{key}', k.replace('_', ' ')).replace('{}', '...')}" for k, cues in schema.items()
        )
        return f"{lead} {shape}. {cues}"
    return f"{lead} {shape}. Keys: {', '.join(schema)}"


def _utterance(
    rng: random.Random, pool: Pool, schema: dict[str, list[str]], lower: bool
) -> tuple[str, str, dict[str, str]]:
    verb, noun = rng.choice(VERBS), rng.choice(pool.words) if rng.random() < 0.7 else ""
    parts, values = [f"{verb} {rng.choice(ARTICLES)}{noun}".strip() if noun else verb], dict[str, str]()
    for key in rng.sample(list(schema), rng.randint(1, min(5, len(schema)))):
        value = _value(rng, pool, key.split("_")[-1], lower)
        cue = rng.choice(schema[key]).replace("{key}", key.replace("_", " "))
        parts.append(cue.replace("{}", value))
        values[key] = value
        if rng.random() < 0.1:
            parts.append(rng.choice(["and", "also", "then", "um", "you know", "and then", "but"]))
    if rng.random() < 0.15:  # the action may come last
        parts.append(parts.pop(0))
    text = rng.choice(OPENERS) + " ".join(parts) + rng.choice(CLOSERS)
    return (text if lower else text[0].upper() + text[1:]), f"{verb} {noun}".strip(), values


def _value(rng: random.Random, pool: Pool, key: str, lower: bool) -> str:
    kind = rng.random()
    if key in NUMERIC and kind < 0.8:
        value = rng.choice(
            [str(rng.randint(0, 9)), str(rng.randint(0, 99)), str(rng.randint(0, 2030)), rng.choice(NUMBER_WORDS)]
        )
    elif key in ("time", "date") and kind < 0.8:
        clock = rng.choice(
            [
                f"{rng.randint(1, 12)} {rng.choice(['am', 'pm', 'o clock'])}",
                f"{rng.randint(0, 23)}:{rng.randint(0, 59):02}",
            ]
        )
        value = rng.choice(
            [
                clock,
                rng.choice(DAYS),
                f"{rng.choice(MONTHS)} {rng.randint(1, 31)}",
                rng.choice(NUMBER_WORDS[:12]) + " o'clock",
            ]
        )
    elif kind < 0.40:
        value = _ngram(rng, pool)
    elif kind < 0.62:
        value = rng.choice(pool.names)
    elif kind < 0.78:
        value = " ".join(rng.choice(pool.words) for _ in range(rng.choice([1, 1, 2, 3])))
    elif kind < 0.93:
        value = " ".join(_perturbed(rng, rng.choice(pool.words)) for _ in range(rng.choice([1, 1, 2])))
    else:
        value = str(rng.randint(0, 10 ** rng.randint(1, 4)))
    return value.lower() if lower else value


def _ngram(rng: random.Random, pool: Pool) -> str:
    words = rng.choice(pool.spoken if rng.random() < 0.5 else pool.prose).split()
    n = rng.randint(1, min(5, len(words)))
    at = rng.randrange(len(words) - n + 1)
    return " ".join(words[at : at + n]).strip("\"',.;:!?-()") or words[at]


def _perturbed(rng: random.Random, word: str) -> str:
    if rng.random() < 0.4:
        return "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(2, 4)))
    letters = list(word)
    for _ in range(rng.randint(1, 3)):
        letters[rng.randrange(len(letters))] = rng.choice("abcdefghijklmnopqrstuvwxyz")
    return "".join(letters)


def _sentence(rng: random.Random, pool: Pool, lower: bool) -> str:
    sentence = rng.choice(pool.spoken if rng.random() < 0.75 else pool.prose)
    return sentence.lower() if lower else sentence


def _styled(action: str, style: str) -> str:
    return {
        "camel": "".join(w.capitalize() for w in action.split()),
        "snake": action.replace(" ", "_"),
        "words": action,
    }[style]


def _ask(rng: random.Random, question: str, text: str, answer: object) -> Turns:
    reply = answer if isinstance(answer, str) else _dump(answer)
    form = rng.randrange(4)
    if form == 0:
        return [(SYSTEM, question), (USER, text), (ASSISTANT, reply)]
    if form == 1:
        return [(USER, f"{question}: {text}"), (ASSISTANT, reply)]
    if form == 2:
        return [(USER, f"{text}\n{question}"), (ASSISTANT, reply)]
    return [(USER, text), (USER, question), (ASSISTANT, reply)]


def _dump(answer: object) -> str:
    return json.dumps(answer, ensure_ascii=False)
