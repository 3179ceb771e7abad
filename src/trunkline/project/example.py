"""The rows that a new project starts with: forty short messages to a help desk, by what they ask for.

Plain text written for this project, enough for every command to work at once; far too little to learn much from.
"""

from __future__ import annotations

import json

MESSAGES: dict[str, tuple[str, ...]] = {
    "where_is_it": (
        "Where is my parcel?",
        "It was meant to be here on Monday and the tracking page has not moved since.",
        "Can you tell me when the order from last week arrives?",
        "The courier says it is delivered, but there is nothing at my door.",
        "How much longer will the shipment take?",
        "Still waiting for the lamp I ordered in March.",
        "Has my order left the warehouse yet?",
        "My neighbour got hers yesterday, so where is mine?",
        "Please send me the tracking number.",
        "Is the delivery still planned for this afternoon?",
    ),
    "money_back": (
        "I would like my money back.",
        "You charged me twice for the same chair.",
        "How long does a refund take to show on my card?",
        "The jacket is too small, so I am returning it and want a refund.",
        "I cancelled on Tuesday and the amount is still missing.",
        "Please pay the 20 euros back to my account.",
        "The voucher did not work and I paid the full price.",
        "Can I return this without the receipt?",
        "Half of the set was missing, so please refund half of it.",
        "When will you return what I paid for the broken kettle?",
    ),
    "it_is_broken": (
        "The screen stays black when I switch it on.",
        "One leg of the table snapped on the first day.",
        "My headphones crackle on the left side.",
        "The zip of the tent is torn.",
        "It worked for a week and now it will not charge.",
        "There is a crack in the glass.",
        "The app closes as soon as I open it.",
        "Water drips out of the bottom of the machine.",
        "The fan makes a grinding noise.",
        "The remote does not react any more, even with new batteries.",
    ),
    "change_it": (
        "Please send it to my office instead.",
        "Can I still swap the blue one for a green one?",
        "I typed the wrong house number.",
        "Make that three instead of two, please.",
        "I need another delivery day, since I am away on Friday.",
        "Could you add a gift note to my order?",
        "Change the size to medium if it has not been sent.",
        "Please use my new phone number for the courier.",
        "Can we move the installation to next month?",
        "I want to pay by invoice rather than by card.",
    ),
}


def example_rows() -> str:
    """The messages as jsonl with `text` and `label`, the labels taking turns."""
    rows = zip(*([(text, label) for text in texts] for label, texts in MESSAGES.items()), strict=True)
    lines = (json.dumps({"text": text, "label": label}, ensure_ascii=False) for turn in rows for text, label in turn)
    return "".join(line + "\n" for line in lines)
