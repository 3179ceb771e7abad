"""Settings of a project that do not fit its encoder, or each other across files, as problems.

Knows project files and the encoder's shape; nothing of stages or data.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from trunkline.engine.choose import no_openvino
from trunkline.errors import Problem
from trunkline.model.source import LATENTS, Source
from trunkline.project.config import ProjectFiles, ProjectSettings, TaskSettings
from trunkline.project.explain import show
from trunkline.project.files import PROJECT_FILE
from trunkline.project.teachers import own


def misfits(files: ProjectFiles, source: Source) -> Iterator[Problem]:
    """All that a project asks for and its encoder or its seeds do not allow."""
    if files.settings.cost.tokens > source.max_positions:
        yield Problem(
            "project.toml",
            "cost.tokens",
            "more tokens than the encoder reads",
            found=str(files.settings.cost.tokens),
            allowed=f"at most {source.max_positions} ({source.name})",
        )
    reason = no_openvino(source.family)
    if files.settings.cost.engine == "openvino" and reason is not None:
        yield Problem("project.toml", "cost.engine", reason, found="openvino", allowed='"torch" or "auto"')
    for name, settings in files.tasks.items():
        file = f"tasks/{name}.toml"
        for layers in settings.tune.layers:
            if layers > source.depth:
                yield Problem(
                    file,
                    "tune.layers",
                    "more layers than the encoder has",
                    found=str(layers),
                    allowed=f"1 to {source.depth} ({source.name} has {source.depth} layers)",
                )
        for depth in settings.exits.depths:
            if depth >= source.depth:
                yield Problem(
                    file,
                    "exits.depths",
                    "no exit stands so deep, since all of an encoder's layers have been run there",
                    found=str(depth),
                    allowed=f"below {source.depth} ({source.name} has {source.depth} layers)",
                )
        if any(settings.distill.latents) and source.family not in LATENTS:
            yield Problem(
                file,
                "distill.latents",
                f"layers of {source.family} cannot be trained for latents",
                found=str(settings.distill.latents),
                allowed=f"0, or an encoder of {', '.join(LATENTS)}",
            )
        if settings.data.unlabelled and not settings.exits.enabled:
            yield Problem(file, "data.unlabelled", "nothing reads it", show(settings.data.unlabelled), "exits.enabled")
        yield from _unknown_seeds(file, settings, files.settings)
        if settings.max_tokens > source.max_positions:
            yield Problem(
                file,
                "max_tokens",
                "more tokens than the encoder reads",
                found=str(settings.max_tokens),
                allowed=f"at most {source.max_positions} ({source.name})",
            )


def unread(task: str, settings: TaskSettings, readings: Collection[str]) -> Iterator[Problem]:
    """Teachers of a task that read in other ways than these, in which it is tuned."""
    for teacher in settings.distill.teachers:
        found = own(teacher)
        if found is not None and found.reading is not None and found.reading not in readings:
            forms = [f"tune:{found.layers}" + ("" if one == "single" else f"/{one}") for one in readings]
            allowed = f"{', '.join(forms)} (pair)"
            what = "nothing is tuned in this reading"
            yield Problem(f"tasks/{task}.toml", "distill.teachers", what, show(teacher), allowed)


def _unknown_seeds(file: str, settings: TaskSettings, project: ProjectSettings) -> Iterator[Problem]:
    seeds = range(project.seed, project.seed + project.search.seeds)
    for teacher in settings.distill.teachers:
        found = own(teacher)
        if found is not None and found.seed is not None and found.seed not in seeds:
            allowed = f"{seeds.start} to {seeds.stop - 1} (seed and search.seeds in {PROJECT_FILE})"
            yield Problem(file, "distill.teachers", "nothing is trained with this seed", show(teacher), allowed)
