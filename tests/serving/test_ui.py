"""The playground in headless Chromium, against the real app over a service that answers from a few words it knows."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright", reason="the playground's tests drive a browser with playwright")
pytest.importorskip("uvicorn", reason="the playground's tests need the extra serve")

import httpx
import uvicorn
from playwright.sync_api import Browser, ConsoleMessage, Error, Locator, Page, expect, sync_playwright
from serving.fakes import SPEEDS, FakeService

from trunkline.engine.base import ItemError
from trunkline.project.tasks import Answer, Kind, Span
from trunkline.serving import ui
from trunkline.serving.app import Settings, create_app
from trunkline.serving.errors import DeadlineExceeded, Invalid, Overloaded, Refusal, TooLarge, Unavailable
from trunkline.serving.keys import Keys
from trunkline.serving.replies import ModelInfo, Reply, TaskInfo, Timings

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
MARKUP = "<img src=x onerror=window.hacked=1><script>window.hacked=1</script>"
KNOWN = {"Zoë": "person", "Zoe\u0308": "person", "Paris": "place", "東京": "place", MARKUP: MARKUP}
APPOINTMENT = "Could you move my appointment in Paris?"


def task(name: str, kind: Kind, labels: Sequence[str], fork: int, layers: int = 1, pair: bool = False) -> TaskInfo:
    positive = labels[1] if kind is Kind.RELEVANCE else None
    return TaskInfo(name, kind, tuple(labels), positive, pair, 64, fork, layers, "0" * 16)


INTENT = task("intent", Kind.CLASSIFICATION, ("book", "cancel", "move", "order", "pay", "play", "ask"), 3, layers=2)
SAME = task("same", Kind.RELEVANCE, ("no", "yes"), 5, pair=True)
SLOTS = task("slots", Kind.TAGGING, ("O", "B-person", "I-person", "B-place", "I-place"), 3)
TONE = task("tone", Kind.MULTILABEL, ("angry", "joking", "polite"), 2)
URGENCY = task("urgency", Kind.REGRESSION, (), 4, layers=0)
EARLY = replace(INTENT, exits=(1, 4), speeds=SPEEDS)
UNCERTAIN = {1: 0.9, 4: 0.5, 5: 0.25}
"""How unsure its exits and its head are of any text."""
DEFAULT = (INTENT, SAME, SLOTS, TONE, URGENCY)


def model(*tasks: TaskInfo, name: str = "demo", bundle: str = "a1b2c3d4e5f60718") -> ModelInfo:
    return ModelInfo(name, bundle, {task.name: task for task in tasks}, "bert", 6, 32, "openvino", "bf16", "cpu")


class Service(FakeService):
    """Answers that a test can foretell, at a speed of at least `raised`."""

    raised = 0.0

    def reset(self) -> None:
        self.raised = 0.0
        self.serve(*DEFAULT)
        self.refusal = None
        self.asked.clear()
        self.dialled.clear()

    def serve(self, *tasks: TaskInfo, **about: str) -> None:
        self._become(model(*tasks, **about))

    async def predict(self, inputs: Sequence[object], tasks: Sequence[str] | None = None, **options: Any) -> Reply:
        if self.raised:
            options["speed"] = max(self.raised, options.get("speed") or 0.0)
        reply = await super().predict(inputs, tasks, **options)
        named = [reply.model.tasks[name] for name in reply.answers[0]]
        answers = {task.name: foretold(task, inputs[0]["text"]) for task in named}  # type: ignore[index]
        layers = reply.layers
        for task in named:
            if found := reply.speeds.get(task.name):
                exits = (depth for depth in task.exits if found >= UNCERTAIN[depth])
                left = next(exits, task.depth)
                answers[task.name] = replace(answers[task.name], exit_layer=left, uncertainty=UNCERTAIN[left])
                layers = max(min(left, task.fork), *(other.fork for other in named if other is not task), 0)
        return replace(reply, answers=[answers], layers=layers, timings=Timings(0.5, 0.25, 6.0, 3.0, 10.0))


def foretold(task: TaskInfo, text: str) -> Answer | ItemError:
    labels = task.labels
    match task.kind:
        case Kind.TAGGING if "too long" in text:
            return ItemError("the text is too long")
        case Kind.TAGGING:
            found = sorted((text.find(words), words) for words in KNOWN if words in text)
            return Answer(spans=[Span(KNOWN[words], at, at + len(words), words, 0.97) for at, words in found])
        case Kind.MULTILABEL:
            return Answer(labels=list(labels[-1:]), scores=dict(zip(labels, (0.2, 0.04, 0.9), strict=True)))
        case Kind.REGRESSION:
            return Answer(score=-0.7312)
    chosen = labels[min(2, len(labels) - 1)]
    rest = 0.1 / (len(labels) - 1)
    return Answer(label=chosen, score=0.9, scores={label: 0.9 if label == chosen else rest for label in labels})


@contextmanager
def serving(service: Service, settings: Settings | None = None) -> Iterator[str]:
    """The address of the app over this service."""
    listener = socket.create_server(("127.0.0.1", 0))  # it listens from now on: a request waits until uvicorn is up
    config = uvicorn.Config(create_app(service, settings), log_level="error", ws="none", lifespan="off")  # type: ignore[arg-type]
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Service, str]]:
    service = Service()
    with serving(service) as url:
        yield service, url


@pytest.fixture
def service(running: tuple[Service, str]) -> Service:
    running[0].reset()
    return running[0]


@pytest.fixture
def url(running: tuple[Service, str]) -> str:
    return running[1]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        try:
            launched = playwright.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        except Error:
            if CHROMIUM is not None:
                raise
            pytest.skip("no Chromium is installed on this machine")
        yield launched
        launched.close()


@pytest.fixture
def blank(browser: Browser) -> Iterator[Page]:
    """A page that must stay at home and may complain of nothing but refused requests."""
    context = browser.new_context(viewport={"width": 1180, "height": 800}, reduced_motion="reduce")
    context.set_default_timeout(10_000)
    page = context.new_page()
    wrong: list[str] = []

    def said(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and "/v1/" not in message.location["url"]:
            wrong.append(message.text)

    page.on("console", said)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request", lambda request: None if request.url.startswith("http://127.0.0.1") else wrong.append(request.url)
    )
    yield page
    context.close()
    assert wrong == []


@pytest.fixture
def page(blank: Page, service: Service, url: str) -> Page:
    """The playground with its model loaded."""
    blank.goto(url)
    expect(blank.locator("#tasks .chip")).to_have_count(5)
    return blank


def ask(page: Page, text: str, pair: str = "") -> None:
    """Type and submit with the keyboard alone."""
    page.get_by_label("Text", exact=True).fill(text)
    if pair:
        page.get_by_label("Second text").fill(pair)
    page.keyboard.press("Control+Enter")


def row(page: Page, name: str) -> Locator:
    return page.locator(f'.row[data-task="{name}"]')


def lit(page: Page) -> set[str | None]:
    return {branch.get_attribute("data-task") for branch in page.locator("svg .branch.lit").all()}


def test_the_page_and_its_files_come_with_their_types_and_a_policy_that_keeps_them_at_home(url: str) -> None:
    types = {
        "/": "text/html; charset=utf-8",
        "/ui/style.css": "text/css; charset=utf-8",
        "/ui/app.js": "text/javascript; charset=utf-8",
        "/ui/icon.svg": "image/svg+xml",
    }
    for path, media in types.items():
        got = httpx.get(url + path)
        assert (got.status_code, got.headers["content-type"]) == (200, media)
        assert got.headers["content-security-policy"].startswith("default-src 'self';")
        assert httpx.get(url + path, headers={"If-None-Match": '"other"'}).content == got.content
        again = httpx.get(url + path, headers={"If-None-Match": f'"other", W/{got.headers["etag"]}'})
        assert (again.status_code, again.content) == (304, b"")
        head = httpx.head(url + path)
        assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", got.headers["etag"])
    for path in ("/ui/__init__.py", "/ui/..%2f__init__.py", "/ui/", "/index.html"):
        assert httpx.get(url + path).status_code == 404
    assert not {"/", "/ui/app.js"} & httpx.get(url + "/openapi.json").json()["paths"].keys()


def test_the_page_is_small() -> None:
    folder = Path(ui.__file__).parent
    assert sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".html", ".css", ".js")) < 50_000


def test_a_text_typed_and_sent_by_keyboard_gets_every_answer_with_scores_times_and_the_way_it_went(
    page: Page, service: Service
) -> None:
    ask(page, APPOINTMENT, "Another")
    expect(page.get_by_role("status")).to_have_text("5 answers in 10.0 ms 5 of 6 trunk layers run")
    tasks = ["intent", "same", "slots", "tone", "urgency"]
    assert service.asked == [([{"text": APPOINTMENT, "text_pair": "Another"}], tasks, None)]
    expect(row(page, "intent").locator(".big")).to_have_text("move")
    assert row(page, "intent").locator("dt").all_inner_texts()[0] == "move"
    assert row(page, "intent").locator("dd").all_inner_texts()[:2] == ["90.0 %", "1.7 %"]
    row(page, "intent").get_by_text("2 other labels").click()
    expect(row(page, "intent").get_by_text("ask")).to_be_visible()
    full, filled = (row(page, "intent").locator(css).first.bounding_box() for css in (".track", ".fill"))
    assert full is not None
    assert filled is not None
    assert filled["width"] / full["width"] == pytest.approx(0.9, abs=0.01)
    expect(row(page, "same").locator(".big")).to_have_text("yes")
    expect(row(page, "tone").locator(".big")).to_have_text("polite")
    expect(row(page, "urgency").locator(".big")).to_have_text("−0.731")
    stages = [" ".join(stage.split()) for stage in page.locator("#times dl > div").all_inner_texts()]
    assert stages == ["queue 0.50 ms", "tokenise 0.25 ms", "trunk 6.00 ms", "branches 3.00 ms", "rest 0.25 ms"]
    assert lit(page) == set(tasks)
    expect(page.locator("svg > rect.lit")).to_have_count(6)  # the embeddings and five layers
    expect(page.get_by_role("img", name="5 of 6 layers of the trunk ran")).to_be_visible()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Zoë is in Paris", ["Zoë", "Paris"]),
        ("👩‍🚀🇫🇷 flew to Paris with Zoe\u0308, 𝓽𝓸𝓭𝓪𝔂\nand 東京 is next 🗼", ["Paris", "Zoe\u0308", "東京"]),
        ("nothing here", []),
    ],
)
def test_spans_are_marked_where_they_stand_whatever_the_characters_before(
    page: Page, text: str, words: list[str]
) -> None:
    ask(page, text)
    shown = row(page, "slots").locator(".text")
    expect(shown).to_be_visible()
    assert shown.locator("mark .words").all_text_contents() == words
    shown.evaluate("node => node.querySelectorAll('.label').forEach(label => label.remove())")
    assert (shown.text_content() or "").replace("\u00a0", "") == text
    value = {0: "no span", 1: "1 span"}.get(len(words), f"{len(words)} spans")
    expect(page.locator("svg .branch[data-task=slots] .value")).to_have_text(value)


def test_a_task_on_pairs_waits_for_the_second_text_and_the_trunk_goes_no_deeper_than_needed(
    page: Page, service: Service
) -> None:
    ask(page, APPOINTMENT)
    expect(row(page, "same")).to_contain_text("waits for a second text")
    expect(page.get_by_role("status")).to_contain_text("4 of 6 trunk layers run")
    assert lit(page) == {"intent", "slots", "tone", "urgency"}
    ask(page, APPOINTMENT, "Another")
    expect(row(page, "same").locator(".big")).to_have_text("yes")
    page.get_by_role("checkbox", name="same").press("Space")
    expect(row(page, "same")).to_have_count(0)
    expect(page.get_by_label("Second text")).to_be_hidden()
    alone = ([{"text": APPOINTMENT}], ["intent", "slots", "tone", "urgency"], None)
    assert [service.asked[0], service.asked[-1]] == [alone, alone]


def test_tasks_are_switched_on_and_off_and_the_text_is_asked_again(page: Page) -> None:
    ask(page, APPOINTMENT)
    expect(page.get_by_role("status")).to_contain_text("4 of 6 trunk layers run")
    page.get_by_role("button", name="None").click()
    expect(page.get_by_role("alert")).to_have_text("Switch on at least one task.")
    expect(page.get_by_role("button", name="None")).to_be_focused()
    assert lit(page) == set()
    page.get_by_role("checkbox", name="tone").check()
    expect(page.get_by_role("status")).to_have_text("1 answer in 10.0 ms 2 of 6 trunk layers run")
    expect(page.get_by_role("alert")).to_have_text("")
    assert lit(page) == {"tone"}
    page.get_by_role("button", name="All").click()
    expect(page.get_by_role("status")).to_contain_text("4 answers")


def test_what_is_missing_is_asked_for_where_it_is_missing(page: Page, service: Service) -> None:
    page.get_by_role("button", name="Answer").click()
    expect(page.get_by_role("alert")).to_have_text("Type a text first.")
    expect(page.get_by_label("Text", exact=True)).to_be_focused()
    page.get_by_role("button", name="None").click()
    page.get_by_role("checkbox", name="same").check()
    ask(page, APPOINTMENT)
    expect(page.get_by_role("alert")).to_have_text("These tasks read two texts. Type the second one too.")
    expect(page.get_by_label("Second text")).to_be_focused()
    assert service.asked == []


def test_an_example_is_one_click_from_its_answers(page: Page) -> None:
    page.locator("#examples button").last.click()
    expect(row(page, "same").locator(".big")).to_have_text("yes")
    assert page.get_by_label("Text", exact=True).input_value() != ""


class Broken(Refusal):
    status = 500


REFUSALS = {
    Overloaded("the queue is full", 3.0): "The server has all the work that it can hold. Try again in 3 seconds.",
    Unavailable("a worker is starting", 0.5): (
        "The server cannot answer now: a worker is starting. Try again in one second."
    ),
    Invalid("no such thing"): "The server cannot take this: no such thing",
    TooLarge("at most 512 tokens"): "The server cannot take this: at most 512 tokens",
    DeadlineExceeded("late"): "The answer took longer than the server allows. Try again in a moment.",
    Broken(MARKUP): f"The server answered with an error (500): {MARKUP}",
}


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: str(refusal.status))
def test_a_refusal_is_told_in_plain_words_and_asking_again_works(
    page: Page, service: Service, refusal: Refusal
) -> None:
    service.refusal = refusal
    ask(page, APPOINTMENT)
    expect(page.get_by_role("alert")).to_have_text(REFUSALS[refusal])
    service.refusal = None
    ask(page, APPOINTMENT)
    expect(page.get_by_role("alert")).to_have_text("")
    expect(row(page, "intent")).to_be_visible()


def test_a_server_that_cannot_be_reached_is_told_as_that(page: Page) -> None:
    page.route("**/v1/predict", lambda route: route.abort())
    ask(page, APPOINTMENT)
    expect(page.get_by_role("alert")).to_contain_text("The server cannot be reached.")


def test_one_task_that_cannot_read_the_text_says_why_beside_the_answers_of_the_others(page: Page) -> None:
    ask(page, "this one is too long")
    expect(row(page, "slots")).to_contain_text("No answer: the text is too long.")
    expect(row(page, "intent").locator(".big")).to_have_text("move")
    expect(page.get_by_role("status")).to_contain_text("3 answers")
    assert lit(page) == {"intent", "tone", "urgency"}


def test_a_key_is_asked_for_where_the_server_wants_one_and_kept_nowhere(blank: Page, service: Service) -> None:
    with serving(service, Settings(keys=Keys(api="sécret"))) as url:
        blank.goto(url)
        expect(blank.get_by_role("alert")).to_have_text("This server wants an API key.")
        expect(blank.get_by_label("API key")).to_be_focused()
        blank.keyboard.type("wrong")
        ask(blank, APPOINTMENT)
        expect(blank.get_by_role("alert")).to_have_text("The server does not take this API key.")
        blank.get_by_label("API key").fill("sécret")
        ask(blank, APPOINTMENT)
        expect(row(blank, "intent")).to_be_visible()
        kept = "[localStorage.length, sessionStorage.length, document.cookie, location.hash].join()"
        assert blank.evaluate(kept) == "0,0,,"
        assert "cret" not in (blank.get_by_role("link", name="Link to this").get_attribute("href") or "")


def test_texts_labels_and_names_are_never_markup(page: Page, service: Service) -> None:
    service.serve(
        replace(INTENT, labels=("a", "b", MARKUP)),
        replace(TONE, labels=("a", "b", MARKUP)),
        replace(SLOTS, labels=("O", f"B-{MARKUP}")),
        name=MARKUP,
    )
    page.reload()
    text = f"in {MARKUP} and 'more'"
    ask(page, text)
    expect(row(page, "slots").locator("mark .words")).to_have_text(MARKUP)
    expect(row(page, "slots").locator("mark .label")).to_have_text(MARKUP)
    for name in ("intent", "tone"):
        expect(row(page, name).locator(".big")).to_have_text(MARKUP)
    expect(page.locator("#name")).to_have_text(MARKUP)
    page.get_by_role("link", name="Link to this").click()
    page.reload()
    expect(page.get_by_label("Text", exact=True)).to_have_value(text)
    expect(row(page, "intent").locator(".big")).to_have_text(MARKUP)
    assert page.evaluate("window.hacked") is None
    assert page.locator("img, script:not([src])").count() == 0


def test_a_link_opens_with_the_texts_and_tasks_it_was_made_with_and_their_answers(
    page: Page, url: str, service: Service
) -> None:
    page.get_by_role("checkbox", name="tone").uncheck()
    ask(page, "100 % & 東京 = #1?\n+1", "Another")
    page.get_by_role("link", name="Link to this").click()
    assert page.url.startswith(f"{url}/#text=")
    other = page.context.new_page()
    other.goto(page.url)
    expect(row(other, "intent")).to_be_visible()
    expect(other.get_by_role("checkbox", name="tone")).not_to_be_checked()
    assert len(service.asked) == 2
    assert service.asked[0] == service.asked[1]


def test_a_bundle_that_went_live_meanwhile_is_shown_with_its_tasks(page: Page, service: Service) -> None:
    page.get_by_role("checkbox", name="tone").uncheck()
    service.serve(*DEFAULT, task("topic", Kind.CLASSIFICATION, "xy", 1), bundle="ffff000011112222")
    ask(page, APPOINTMENT)
    expect(page.locator("#about")).to_contain_text("ffff000011112222")
    expect(page.get_by_role("heading", level=1)).to_have_text("6 tasks in one pass")
    expect(page.get_by_role("checkbox", name="topic")).to_be_checked()
    expect(page.get_by_role("checkbox", name="tone")).not_to_be_checked()


def test_a_task_that_went_meanwhile_is_gone_at_the_next_request(page: Page, service: Service) -> None:
    service.serve(INTENT, TONE)
    ask(page, APPOINTMENT)
    expect(page.get_by_role("alert")).to_contain_text("The model has changed meanwhile: unknown task")
    expect(page.locator("#tasks .chip")).to_have_count(2)
    ask(page, APPOINTMENT)
    expect(page.get_by_role("status")).to_contain_text("2 answers")


def test_a_task_that_is_not_loaded_cannot_be_asked(page: Page, service: Service) -> None:
    service.serve(INTENT, replace(TONE, loaded=False))
    page.reload()
    expect(page.get_by_role("checkbox", name="tone")).to_be_disabled()
    ask(page, APPOINTMENT)
    expect(row(page, "intent")).to_be_visible()
    assert service.asked[0][1] == ["intent"]


def test_a_speed_lets_texts_leave_and_moving_it_asks_again(page: Page, service: Service) -> None:
    expect(page.get_by_label("Speed")).to_be_hidden()  # no task has exits
    service.serve(EARLY, TONE)
    page.reload()
    speed = page.get_by_label("Speed")
    expect(speed).to_be_visible()
    ask(page, APPOINTMENT)
    expect(page.get_by_role("status")).to_contain_text("3 of 6 trunk layers run")
    expect(row(page, "intent")).not_to_contain_text("uncertainty")
    speed.fill("0.6")
    expect(row(page, "intent")).to_contain_text("left at layer 4 of 5 · speed 0.60 · uncertainty 0.50")
    assert [block.get_attribute("class") for block in page.locator("svg .branch[data-task=intent] .block").all()] == [
        "block lit",
        "block ready",
    ]
    speed.focus()
    page.keyboard.press("End")
    expect(row(page, "intent")).to_contain_text("left at layer 1 of 5 · speed 1.00 · uncertainty 0.90")
    expect(row(page, "tone")).not_to_contain_text("uncertainty")
    expect(page.get_by_role("status")).to_contain_text("2 of 6 trunk layers run")  # for the other task
    expect(
        page.get_by_role("img", name="intent leaves at layer 3 with 2 own layers: move, after layer 1.")
    ).to_be_visible()
    page.get_by_role("link", name="Link to this").click()
    speed.fill("0.05")
    expect(row(page, "intent")).to_contain_text("stayed to layer 5 of 5 · speed 0.05 · uncertainty 0.25")
    assert service.dialled == [(None, None), (0.6, None), (1.0, None), (0.05, None)]
    page.reload()
    expect(page.locator("#speed-shown")).to_have_text("1.00")
    expect(row(page, "intent")).to_contain_text("left at layer 1 of 5")
    page.get_by_role("checkbox", name="intent").uncheck()
    expect(speed).to_be_hidden()
    expect(page.get_by_role("status")).to_contain_text("1 answer")
    assert service.dialled[-1] == (None, None)


def test_a_speed_that_the_server_raised_stands_beside_where_the_text_left(page: Page, service: Service) -> None:
    service.serve(EARLY, TONE)
    service.raised = 0.7
    page.reload()
    ask(page, APPOINTMENT)
    expect(row(page, "intent")).to_contain_text("left at layer 4 of 5 · speed 0.70 · uncertainty 0.50")
    expect(page.locator("#speed-shown")).to_have_text("0.00")


@pytest.mark.parametrize("width", [360, 700, 1180])
def test_nothing_is_wider_than_the_screen(page: Page, service: Service, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 740})
    long = "a_label_that_somebody_made_far_too_long_" * 3
    many = [
        task(f"a_task_with_a_long_name_{i}", Kind.CLASSIFICATION, (long, "b", f"{long}!"), i % 7) for i in range(30)
    ]
    early = [replace(each, exits=(1,), speeds=SPEEDS) for each in many[1::2]]
    service.serve(*many[::2], *early, replace(SLOTS, labels=("O", "B-person", "B-place")), SAME)
    page.reload()
    expect(page.locator("#tasks .chip")).to_have_count(32)
    assert page.evaluate(OVERFLOW) == 0
    ask(page, "unbreakable" * 60 + " Paris", "x" * 500)
    expect(row(page, "same")).to_be_visible()
    assert page.evaluate(OVERFLOW) == 0
    right = "node => node.getBoundingClientRect().right"
    edge = page.locator("svg").evaluate(right) + 4  # the halo of a text counts as part of it
    assert [text for text in page.locator("svg text").all() if text.evaluate(right) > edge] == []


OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


def test_on_a_phone_the_answers_come_into_view(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    expect(page.get_by_role("status")).not_to_be_in_viewport()
    ask(page, APPOINTMENT)
    expect(page.get_by_role("status")).to_be_in_viewport()


def test_tab_goes_through_the_page_in_the_order_of_reading_and_shows_where_it_is(
    blank: Page, url: str, service: Service
) -> None:
    blank.goto(f"{url}/#text=Paris")
    expect(row(blank, "intent")).to_be_visible()
    seen = []
    for _ in range(16):
        blank.keyboard.press("Tab")
        name, outline, width, top = blank.evaluate(FOCUSED)
        assert (outline, width >= 2, top >= 0) == ("solid", True, True), name
        seen.append(name)
    assert seen[:10] == ["text", "pair", "intent", "same", "slots", "tone", "urgency", "all", "none", "Answer"]
    assert seen[14:] == ["link", "2 other labels"]


FOCUSED = """() => {
  const at = document.activeElement;
  const { outlineStyle, outlineWidth } = getComputedStyle(at);
  const name = at.id || at.value || at.textContent.trim();
  return [name, outlineStyle, parseFloat(outlineWidth), at.getBoundingClientRect().top];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_the_contrast_of_wcag_aa(page: Page, service: Service, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    service.serve(EARLY, SAME, SLOTS, replace(SLOTS, name="slots2"), TONE, replace(URGENCY, loaded=False))
    page.reload()
    page.get_by_label("Speed").fill("1")
    page.get_by_role("checkbox", name="slots2").uncheck()
    ask(page, "Zoë in Paris")
    expect(row(page, "slots").locator("mark")).to_have_count(2)
    assert page.evaluate(TOO_FAINT) == []
    ask(page, "Zoë in Paris is too long")
    expect(row(page, "slots")).to_contain_text("No answer")
    page.get_by_role("button", name="None").click()
    expect(page.get_by_role("alert")).to_be_visible()
    assert page.evaluate(TOO_FAINT) == []


# Every visible text against the nearest background painted behind it, as relative luminances (WCAG 2.2, 1.4.3). In the
# drawing that is the block that the text stands in, or the card.
TOO_FAINT = """() => {
  const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = (colour) => {
    const shares = parse(colour).map((value) => value / 255);
    const [r, g, b] = shares.map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const painted = (node) => {
    if (node.matches?.("svg text.in")) return getComputedStyle(node.previousSibling).fill;
    for (let at = node; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if ((parse(colour)[3] ?? 1) > 0) return colour;
    }
  };
  const faint = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text = walker.nextNode(); text; text = walker.nextNode()) {
    const node = text.parentElement;
    if (!text.data.trim() || !node.checkVisibility() || node.closest("title, noscript")) continue;
    const style = getComputedStyle(node);
    const [one, other] = [luminance(node.closest("svg") ? style.fill : style.color), luminance(painted(node))];
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (ratio < 4.5) faint.push([text.data.trim(), ratio]);
  }
  return faint;
}"""


def test_nothing_moves_for_those_who_asked_for_less_motion(page: Page) -> None:
    ask(page, APPOINTMENT)
    expect(page.locator("svg .block.lit").first).to_be_visible()
    assert page.evaluate("document.getAnimations().length") == 0
    page.emulate_media(reduced_motion="no-preference")
    page.get_by_role("checkbox", name="tone").uncheck()
    page.wait_for_function("document.getAnimations().length > 0")
