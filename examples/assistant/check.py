"""Check the assistant's data against the annotation guide in README.md: `python check.py`.

Every row must be well formed, and the hand-written test rows must be new: none equals a generated text, and none fits a
wording of phrases.toml, alone or between phrases of tone and urgency. Prints every problem; standard library only.
Whether a label is *right* is for readers to judge, not for this module.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from generate import HERE, folded
from language import TONES, WORD

MESSAGE_FILES = ("messages", "messages_valid", "test")
PAIR_FILES = ("pairs", "pairs_valid", "test_pairs")
LEAST_MESSAGES, LEAST_PAIRS = 200, 100
ANY_WORDS = r"(?:\S+ ){1,5}?"  # stands for a slot where a text has no tags

Row = dict[str, Any]


class Wordings:
    """Everything that phrases.toml can say, as regular expressions over folded words."""

    def __init__(self, phrases: dict[str, Any]) -> None:
        self.phrases: dict[str, list[str]] = phrases["phrases"]
        self.labels = {name: slot["label"] for name, slot in phrases["slots"].items()}
        says = [say for frame in phrases["frame"] for say in frame["say"]]
        self.tagged = {say: re.compile(r"(?<!\S)" + self._regex(say, tagged=True)) for say in says}
        # Without tags a slot may be any words, so only wordings with words enough of their own can be recognised.
        self.untagged = {
            say: re.compile(r"(?<!\S)" + self._regex(say, tagged=False))
            for say in says
            if len(re.findall(r"[a-z]+", re.sub(r"\([^)]*\)|<\w+>|\{\w+\}|~\w+", " ", say))) >= 3
        }
        self.before = self._any(extra for wrap in phrases["wrap"] for extra in wrap["before"])
        self.after = self._any(extra for wrap in phrases["wrap"] for extra in wrap["after"])

    def fitting(self, row: Row) -> str | None:
        """The wording that a whole message fits, its slots wherever its tags stand."""
        return self._fitting(skeleton(row), self.tagged)

    def fitting_text(self, text: str) -> str | None:
        """The wording that a whole text without tags fits, its slots being any words."""
        return self._fitting(folded(text) + " ", self.untagged)

    def _fitting(self, text: str, patterns: dict[str, re.Pattern[str]]) -> str | None:
        for say, pattern in patterns.items():
            for match in pattern.finditer(text):
                if self.before.fullmatch(text[: match.start()]) and self.after.fullmatch(text[match.end() :]):
                    return say
        return None

    def _any(self, extras: Iterable[str]) -> re.Pattern[str]:
        return re.compile("(?:" + "|".join(sorted({self._regex(extra, tagged=True) for extra in extras})) + ")*")

    def _regex(self, pattern: str, *, tagged: bool) -> str:
        """A pattern as a regular expression in which every word is followed by a space."""
        parts = []
        for part in re.findall(r"[(|)]|<\w+>|\{\w+\}(?:'s)?|~\w+|[^(|)<{~]+", pattern):
            if part == "(":
                parts.append("(?:")
            elif part in "|)":
                parts.append(part)
            elif part[0] == "<":
                options = sorted({self._regex(option, tagged=tagged) for option in self.phrases[part[1:-1]]})
                parts.append("(?:" + "|".join(options) + ")")
            elif part[0] == "{":
                label = self.labels[re.sub(r"\d*\}.*", "", part[1:])]
                parts.append(f"(?:(?:the|an|a|my|our) )?slot{label} " if tagged else ANY_WORDS)
            elif part[0] != "~" and folded(part):
                parts.append(re.escape(folded(part)).replace(r"\ ", " ") + " ")
        return "".join(parts)


def skeleton(row: Row) -> str:
    """The folded words of a message, each span replaced by its label: "call Tom Baker" -> "call slotperson "."""
    words = []
    for token, tag in zip(row["tokens"], row["tags"], strict=True):
        if tag == "O":
            words.append(folded(token))
        elif tag.startswith("B-"):
            words.append("slot" + tag[2:])
    return "".join(f"{word} " for word in words if word)


def read(folder: Path, name: str) -> list[Row]:
    """The rows of one file."""
    lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def message_problems(row: Row, phrases: dict[str, Any]) -> Iterator[str]:
    """What is wrong with one message, whoever wrote it."""
    labels = {slot["label"] for slot in phrases["slots"].values()}
    if row["tokens"] != WORD.findall(row["text"]):
        yield "tokens are not the words of the text"
    if len(row["tokens"]) != len(row["tags"]):
        yield f"{len(row['tokens'])} tokens and {len(row['tags'])} tags"
    for last, tag in zip(["O", *row["tags"]], row["tags"], strict=False):
        if tag != "O" and (tag[:2] not in ("B-", "I-") or tag[2:] not in labels):
            yield f"unknown tag {tag}"
        if tag.startswith("I-") and last[2:] != tag[2:]:
            yield f"{tag} continues nothing"
    if row["intent"] not in phrases["base_urgency"]:
        yield f"unknown intent {row['intent']}"
    if row["tone"] != ["neutral"] and row["tone"] != [tone for tone in TONES if tone in row["tone"]]:
        yield f"tone {row['tone']}: not known, not in order, or neutral beside another"
    if not row["tone"]:
        yield "no tone (neutral where there is none)"
    if row["urgency"] not in [level / 10 for level in range(11)]:
        yield f"urgency {row['urgency']} is no level of the guide"


def group_problems(rows: list[Row]) -> Iterator[str]:
    """What is wrong with the groups of pairs."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["group"]].append(row)
        if row["label"] not in ("same", "different"):
            yield f"{row['id']}: unknown label {row['label']}"
        if folded(row["text"]) == folded(row["text_pair"]):
            yield f"{row['id']}: the two texts are the same"
    for name, group in groups.items():
        if len({row["text"] for row in group}) != 1:
            yield f"{name}: more than one query"
        if {row["label"] for row in group} != {"same", "different"}:
            yield f"{name}: needs a candidate that is the same and one that is not"


def problems(folder: Path = HERE / "data") -> list[str]:
    """Everything that is wrong with the data files of a folder."""
    phrases = tomllib.loads((HERE / "phrases.toml").read_text(encoding="utf-8"))
    rows = {name: read(folder, name) for name in (*MESSAGE_FILES, *PAIR_FILES)}
    found = []
    for name in rows:
        ids = [row["id"] for row in rows[name]]
        found += [f"{name}: {row_id} stands there twice" for row_id in sorted({i for i in ids if ids.count(i) > 1})]
    for name in MESSAGE_FILES:
        found += [f"{name}: {row['id']}: {text}" for row in rows[name] for text in message_problems(row, phrases)]
    for name in PAIR_FILES:
        found += [f"{name}: {text}" for text in group_problems(rows[name])]
    for name, least in (("test", LEAST_MESSAGES), ("test_pairs", LEAST_PAIRS)):
        if len(rows[name]) < least:
            found.append(f"{name}: {len(rows[name])} rows, at least {least} are promised")
    return found if found else list(novelty_problems(rows, Wordings(phrases)))


def novelty_problems(rows: dict[str, list[Row]], wordings: Wordings) -> Iterator[str]:
    """Test rows that the generator has written, or could have."""
    generated = {folded(row["text"]) for name in rows if "test" not in name for row in rows[name]}
    generated |= {folded(row["text_pair"]) for name in ("pairs", "pairs_valid") for row in rows[name]}
    written = set()
    for row in rows["test"]:
        if folded(row["text"]) in generated:
            yield f"test: {row['id']}: a generated message: {row['text']}"
        if folded(row["text"]) in written:
            yield f"test: {row['id']}: written twice: {row['text']}"
        written.add(folded(row["text"]))
        if say := wordings.fitting(row):
            yield f"test: {row['id']}: {row['text']!r} fits the wording {say!r}"
    for row in rows["test_pairs"]:
        for text in (row["text"], row["text_pair"]):
            if folded(text) in generated | written:
                yield f"test_pairs: {row['id']}: stands in another file: {text}"
            if say := wordings.fitting_text(text):
                yield f"test_pairs: {row['id']}: {text!r} fits the wording {say!r}"


def main() -> int:
    """Print every problem; 1 where there is any."""
    found = problems()
    print("\n".join(found) if found else "the assistant's data is as its guide says")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
