"""Write the assistant's train and valid files from the wordings in phrases.toml: `python generate.py`.

The same seed gives the same bytes. The hand-written test files are not its work: it never touches them (check.py makes
sure that they are new). Standard library only; this module knows how many messages are wanted and how people mistype,
and nothing about training. README.md holds the annotation guide.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from language import TONES, Language, Sentence, words_and_tags

HERE = Path(__file__).resolve().parent
SEED = 13
ROWS = {"messages": 2400, "messages_valid": 450}
QUERIES = {"pairs": 500, "pairs_valid": 100}

SHORT = {
    "you": "u", "are": "r", "your": "ur", "please": "plz", "tomorrow": "tmrw", "because": "cuz", "tonight": "tonite",
    "people": "ppl", "and": "&", "minutes": "mins", "thanks": "thx", "really": "rly", "message": "msg", "about": "abt",
    "something": "sth", "though": "tho", "favourite": "fav", "with": "w", "before": "b4", "what": "wat",
}  # fmt: skip
NEIGHBOURS = dict(zip("aeiotnrslmhcdgkpuwby", "sropymtdknbvfhloieng", strict=True))  # a key beside each


def roughen(words: list[tuple[str, str]], tags: list[str], rng: random.Random, angry: bool) -> list[tuple[str, str]]:
    """Write as people type: casing, lost apostrophes and full stops, shorthand, slips. Never changes the word count."""
    casing = rng.random()
    loose = rng.random() < 0.35
    texting = rng.random() < 0.15
    slips = set(rng.sample(range(len(words)), 1)) if rng.random() < 0.22 else set()
    rough = []
    for index, (space, word) in enumerate(words):
        if texting and word.lower() in SHORT:
            word = SHORT[word.lower()]
        if loose:
            word = word.replace("'", "") if len(word) > 1 else word
        if index in slips and word.isalpha() and len(word) > 3:
            word = slip(word, rng)
        if casing < 0.45:
            word = word.lower()
        elif angry and casing > 0.85:
            word = word.upper()
        elif index == 0 and word.islower():
            word = word.capitalize()
        rough.append((space, word))
    if rough[-1][1] in "?." and len(rough) > 1 and rng.random() < 0.5:
        rough.pop()
        tags.pop()
    elif rough[-1][1].isalnum() and rng.random() < 0.2:
        rough.append(("", "."))
        tags.append("O")
    return rough


def slip(word: str, rng: random.Random) -> str:
    """One slip of the finger in a word."""
    at = rng.randrange(1, len(word) - 1)
    kind = rng.randrange(4)
    if kind == 0:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if kind == 1:
        return word[:at] + word[at + 1 :]
    if kind == 2:
        return word[:at] + word[at] + word[at:]
    return word[:at] + NEIGHBOURS.get(word[at].lower(), word[at]) + word[at + 1 :]


def finish(sentence: Sentence, rng: random.Random) -> tuple[str, list[str], list[str]]:
    """Text, tokens and tags of a finished sentence."""
    words, tags = words_and_tags(sentence.marked)
    rough = roughen(words, tags, rng, "angry" in sentence.marks)
    return "".join(space + word for space, word in rough), [word for _, word in rough], tags


def messages(language: Language, count: int, prefix: str) -> Iterator[dict[str, Any]]:
    """Distinct messages, the intents in equal shares, each wording of an intent as likely as any other."""
    rng, seen, intents = language.rng, set[str](), list(language.base)
    while len(seen) < count:
        intent = intents[len(seen) % len(intents)]
        wording = rng.choice([say for frame in language.frames if frame["intent"] == intent for say in frame["say"]])
        sentence = language.wrap(language.say(wording), intent, rng.choices((0, 1, 2), (30, 45, 25))[0])
        text, tokens, tags = finish(sentence, rng)
        if folded(text) in seen:
            continue
        seen.add(folded(text))
        tone = [tone for tone in TONES if tone in sentence.marks] or ["neutral"]
        yield {
            "id": f"{prefix}{len(seen):05d}", "text": text, "intent": intent, "tokens": tokens, "tags": tags,
            "tone": tone, "urgency": language.urgency(intent, sentence.marks),
        }  # fmt: skip


def pairs(language: Language, queries: int, prefix: str) -> Iterator[dict[str, Any]]:
    """Groups of four candidates for one query: one or two ask for the same, the others for something close or else."""
    rng, number = language.rng, 0
    usable = [index for index, frame in enumerate(language.frames) if frame.get("pairs", True) and frame["say"]]
    while number < queries:
        index = rng.choice(usable)
        frame = language.frames[index]
        drawn: dict[str, str] = {}
        wording = rng.choice(frame["say"])
        query = language.say(wording, drawn)
        others = [say for say in language.partners[index] if say != wording]
        same = [said for say in others if (said := language.say(say, drawn)).meaning == query.meaning]
        if not same:
            continue
        rng.shuffle(same)
        candidates = [(said, "same") for said in same[: rng.choice((1, 1, 2))]]
        while len(candidates) < 4:
            candidates.append((another(language, index, query, drawn), "different"))
        rng.shuffle(candidates)
        number += 1
        text = finish(language.wrap(query, frame["intent"], rng.choices((0, 1), (70, 30))[0]), rng)[0]
        for place, (said, label) in enumerate(candidates):
            said = language.wrap(said, frame["intent"], rng.choices((0, 1), (70, 30))[0])
            yield {
                "id": f"{prefix}{number:04d}-{place + 1}", "group": f"{prefix}{number:04d}", "text": text,
                "text_pair": finish(said, rng)[0], "label": label,
            }  # fmt: skip


def another(language: Language, index: int, query: Sentence, drawn: dict[str, str]) -> Sentence:
    """A message that does not ask for the same: another value, a sibling request, or something else altogether."""
    rng, frames = language.rng, language.frames
    while True:
        kind = rng.random()
        if kind < 0.5:  # may well be worded like the query: what differs is the value
            kept = {name: value for name, value in drawn.items() if rng.random() < 0.5}
            said = language.say(rng.choice(language.partners[index]), kept)
            if said.meaning != query.meaning and said.meaning and len(said.meaning) == len(query.meaning):
                return said
        else:
            near = kind < 0.8
            choices = [
                frame
                for place, frame in enumerate(frames)
                if place != index
                and near == (frame["intent"] == frames[index]["intent"])
                and (frame.get("pairs", True) or not near)  # a loose frame may say the same in its own words
            ]
            if choices:
                return language.say(rng.choice(rng.choice(choices)["say"]), dict(drawn))


def folded(text: str) -> str:
    """The words of a text without case and punctuation: what makes two messages the same message."""
    return " ".join(re.findall(r"\w+", text.casefold().replace("'", "").replace("’", "")))


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line, and what was written on the terminal."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")
    print(f"{path}: {len(lines):,} rows")


def main() -> int:
    """Write the generated files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path, default=HERE / "data")
    options = parser.parse_args()
    phrases = tomllib.loads((HERE / "phrases.toml").read_text(encoding="utf-8"))
    options.out.mkdir(parents=True, exist_ok=True)
    for name, prefix in (("messages", "m"), ("messages_valid", "v")):
        language = Language(phrases, held_out=prefix == "v", rng=random.Random(f"{options.seed} {name}"))
        write(options.out / f"{name}.jsonl", messages(language, ROWS[name], prefix))
    for name, prefix in (("pairs", "p"), ("pairs_valid", "q")):
        language = Language(phrases, held_out=prefix == "q", rng=random.Random(f"{options.seed} {name}"))
        write(options.out / f"{name}.jsonl", pairs(language, QUERIES[name], prefix))
    return 0


if __name__ == "__main__":
    sys.exit(main())
