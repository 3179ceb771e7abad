"""What phrases.toml says: its wordings expanded into messages whose slots, tone and urgency are known.

Knows the markup of phrases.toml and the urgency levels of the annotation guide. Knows nothing of files, of how people
mistype, or of how many messages are wanted (generate.py). Standard library only.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from typing import Any

TONES = ("polite", "grateful", "angry", "confused", "joking")
CONTENT = ("chore", "news", "fault", "matter", "subject", "plan", "sun", "storm", "desk")  # part of what is asked for
KEPT = (*CONTENT, "when", "at", "on", "goods")  # drawn once per pair, so that both sides say the same
CLASHES = (
    {"norush", "hurry"}, {"norush", "now"}, {"norush", "again"}, {"norush", "today"}, {"norush", "angry"},
    {"angry", "joking"}, {"angry", "grateful"}, {"hurry", "now"},
)  # fmt: skip
WORD = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")  # as trunkline splits raw text
SPAN = re.compile(r"\[(\w+)\|([^\]]*)\]")


@dataclass
class Sentence:
    """A message under construction: `marked` holds its slots as [label|text]."""

    marked: str
    marks: set[str]
    content: dict[str, str] = field(default_factory=dict)  # what was drawn for each phrase of CONTENT

    @property
    def meaning(self) -> tuple[Any, ...]:
        """What the message asks for: two wordings of one frame with equal meanings are the same request."""
        spans = sorted((label, text.casefold()) for label, text in SPAN.findall(self.marked))
        return (*spans, *sorted(self.content.items()))


class Language:
    """The wordings of phrases.toml that one split may use, and a source of chance."""

    def __init__(self, phrases: dict[str, Any], *, held_out: bool, rng: random.Random) -> None:
        self.rng = rng
        self.base: dict[str, float] = phrases["base_urgency"]
        self.levels: dict[str, float] = phrases["mark_urgency"]
        self.phrases: dict[str, list[str]] = phrases["phrases"]
        self.slots = {name: (slot["label"], share(slot["values"], held_out)) for name, slot in phrases["slots"].items()}
        self.frames = [
            {**frame, "say": frame["say"][-1:] if held_out else frame["say"][:-1]} for frame in phrases["frame"]
        ]
        # Pairs of the valid split set a held-out wording beside any other one of its frame.
        self.partners = [frame["say"] if held_out else frame["say"][:-1] for frame in phrases["frame"]]
        self.wraps = [
            {**wrap, "before": share(wrap["before"], held_out), "after": share(wrap["after"], held_out)}
            for wrap in phrases["wrap"]
        ]

    def say(self, wording: str, drawn: dict[str, str] | None = None) -> Sentence:
        """Expand one wording; `drawn` keeps slot values and phrases, so that a second wording can say the same."""
        drawn = {} if drawn is None else drawn
        text = self._expand(wording, drawn)
        content = {name: drawn[name] for name in CONTENT if f"<{name}>" in wording}
        marks = set(re.findall(r"~(\w+)", text))
        return Sentence(tidy(re.sub(r" ?~\w+", "", text)), marks, content)

    def _expand(self, text: str, drawn: dict[str, str]) -> str:
        # Choices first (a branch not taken must draw nothing), then phrases, whose text may hold choices again.
        while True:
            text, choices = re.subn(r"\(([^()]*)\)", lambda match: self.rng.choice(match[1].split("|")), text)
            text, phrases = re.subn(r"<(\w+)>", lambda match: self._phrase(match[1], drawn), text)
            if not choices and not phrases:
                return re.sub(r"\{(\w+)\}", lambda match: self._slot(match[1], drawn), text)

    def _phrase(self, name: str, drawn: dict[str, str]) -> str:
        if name in KEPT:
            return drawn.setdefault(name, self.rng.choice(self.phrases[name]))
        return self.rng.choice(self.phrases[name])

    def _slot(self, name: str, drawn: dict[str, str]) -> str:
        label, values = self.slots[name.rstrip("0123456789")]
        while name not in drawn:
            value = self._expand(self.rng.choice(values), {})
            mark = re.search(r" ~\w+$", value)
            value = value[: mark.start()] if mark else value
            article = None if label in ("song", "amount") else re.match(r"(the|an|a|my|our) ", value, re.IGNORECASE)
            head = article[0] if article else ""
            marked = f"{head}[{label}|{value[len(head) :]}]{mark[0] if mark else ''}"
            if marked not in drawn.values():  # {grocery} and {grocery2} differ
                drawn[name] = marked
        return drawn[name]

    def wrap(self, sentence: Sentence, intent: str, count: int) -> Sentence:
        """Put up to `count` phrases of tone, urgency or small context around a request."""
        marked, marks = sentence.marked, set(sentence.marks)
        used: list[int] = []
        for _ in range(count):
            choices = [
                index
                for index, wrap in enumerate(self.wraps)
                if index not in used
                and intent in wrap.get("only", [intent])
                and not (intent == "small_talk" and set(wrap["marks"]) & self.levels.keys())
                and not any(clash & set(wrap["marks"]) and clash <= marks | set(wrap["marks"]) for clash in CLASHES)
            ]
            index = self.rng.choices(choices, [self.wraps[choice]["weight"] for choice in choices])[0]
            used.append(index)
            wrap = self.wraps[index]
            if self.rng.random() < 0.45:
                extra = self.say(self.rng.choice(wrap["before"]))
                marked = f"{extra.marked} {marked}"
            else:
                extra = self.say("_" + self.rng.choice(wrap["after"]))  # "_" keeps the leading space or comma
                marked = append(marked, extra.marked[1:])
            marks |= extra.marks | set(wrap["marks"])
        return Sentence(tidy(marked), marks, sentence.content)

    def urgency(self, intent: str, marks: set[str]) -> float:
        """How soon the message wants to be dealt with, 0..1: the levels of the annotation guide."""
        if "norush" in marks:
            return 0.1
        level = max([self.base[intent], *(self.levels[mark] for mark in marks & self.levels.keys())])
        return round(min(1.0, level + 0.1 * ("angry" in marks)), 1)


def share(values: list[str], held_out: bool) -> list[str]:
    """The values that a split may use: every fifth of a long list is kept for valid."""
    return [value for index, value in enumerate(values) if len(values) < 10 or (index % 5 == 4) == held_out]


def tidy(text: str) -> str:
    """Close up spaces left by empty choices, and let one mark stand where two met."""
    text = re.sub(r"\s+", " ", text).strip(" ,")
    text = re.sub(r" ([,.?!:])", r"\1", text)
    return re.sub(r"([.?!:]),|,(?=[.?!])", r"\1", text)


def append(marked: str, tail: str) -> str:
    """Join a tail such as ", please" or ". I'm in the car" to a request that may end in a question mark."""
    if marked.endswith("?") and tail[0] in ", " and len(tail) > 4:
        return marked[:-1] + tail + "?"
    if marked[-1] in "?!." and tail.startswith((". ", ", ")):
        return marked + tail[1:]
    return marked + tail


def words_and_tags(marked: str) -> tuple[list[tuple[str, str]], list[str]]:
    """The words of a marked text, each with the space before it, and their BIO tags.

    A word that a span covers in part ("Anna" in "Anna's") belongs to the span.
    """
    text, spans, last = "", [], 0
    for match in SPAN.finditer(marked):
        text += marked[last : match.start()]
        spans.append((len(text), len(text) + len(match[2]), match[1]))
        text, last = text + match[2], match.end()
    text += marked[last:]
    words, tags, end, inside = [], [], 0, None
    for match in WORD.finditer(text):
        span = next((span for span in spans if match.start() < span[1] and match.end() > span[0]), None)
        tags.append("O" if span is None else f"{'I' if span is inside else 'B'}-{span[2]}")
        words.append((text[end : match.start()], match[0]))
        end, inside = match.end(), span
    return words, tags
