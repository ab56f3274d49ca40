"""One case, a prompt with a seed: its settings, its numbers as a file, and whether it is done already."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from psa_triton.tools.evaluation.ceiling import Ceiling
from psa_triton.tools.evaluation.compare import Candidate, Comparison, label_attentions
from psa_triton.tools.evaluation.measures import PSNR_CAP
from psa_triton.tools.evaluation.summary import summarise
from psa_triton.tools.generation import Attention, VideoRequest
from psa_triton.tools.generation.sidecar import differences, read_settings

SCHEMA_VERSION: Final = 2
"""Of `case.json` and `comparison.json`. Version 1 had PSNR and SSIM alone, and a file a prompt."""


@dataclass(frozen=True)
class Case:
    """A prompt with a seed, to be made dense and otherwise.

    Attributes:
        name: of its folder within the run's; empty where it is the only case.
        folder: where its files go.
        request: what to make.
        settings: everything that determines the result, as plain data.
    """

    name: str
    folder: Path
    request: VideoRequest
    settings: dict[str, Any]

    @property
    def file(self) -> Path:
        """Its numbers; written last, so where it is, the rest is."""
        return self.folder / "case.json"


def plan_cases(
    folder: Path,
    requests: Sequence[VideoRequest],
    seeds: Sequence[int],
    attentions: Sequence[Attention],
    *,
    ceiling: Ceiling | None,
    model: Mapping[str, Any],
) -> list[Case]:
    """A case for each prompt with each seed.

    Args:
        folder: of the run; a single case has its files there, several have a folder each in it.
        requests: one a prompt; their seeds do not count.
        seeds: of the noise.
        attentions: to compare with dense attention.
        ceiling: how dense attention is made a second time.
        model: settings of the model: weights, device, type.
    """
    ways = dict(zip(label_attentions(attentions), (attention.as_dict() for attention in attentions), strict=True))
    how = {**model, "attentions": ways, "ceiling": None if ceiling is None else ceiling.label}
    cases = []
    for index, prompt in enumerate(requests):
        for seed in seeds:
            name = "" if len(requests) * len(seeds) == 1 else f"prompt_{index:04d}_seed_{seed}"
            request = replace(prompt, seed=seed)
            cases.append(Case(name, folder / name, request, {**how, **asdict(request)}))
    return cases


def read_finished(case: Case, *, overwrite: bool = False) -> dict[str, Any] | None:
    """The numbers of a case that is done; None where it is not, or where a part of it failed.

    Raises:
        ValueError: the folder holds a case of other settings, or something else under its name.
    """
    if overwrite or (found := read_settings(case.file)) is None:
        return None
    if changed := differences(found, case.settings):
        raise ValueError(
            f"{case.folder} was made with other settings ({changed}); give --overwrite to replace it, or another folder"
        )
    data: dict[str, Any] = json.loads(case.file.read_text(encoding="utf-8"))
    try:
        if data["missing"]:
            return None
        summarise([data])
    except (KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise ValueError(
            f"{case.file}: expected the numbers of a finished case, found none or others ({error}); move it away "
            "or give --overwrite"
        ) from error
    return data


def case_data(case: Case, comparison: Comparison, described: Mapping[str, Any]) -> dict[str, Any]:
    """All settings and numbers of a case as plain data.

    Args:
        case: what was asked for.
        comparison: what came out.
        described: what else to tell of, such as versions and hardware.
    """
    ceiling = comparison.ceiling
    return {
        "schema_version": SCHEMA_VERSION,
        "name": case.name,
        "settings": case.settings,
        "psnr_cap": PSNR_CAP,
        "dense": {"cost": comparison.dense.cost.as_dict()},
        "ceiling": None
        if ceiling is None
        else {"label": ceiling.label, "cost": ceiling.video.cost.as_dict(), "fidelity": ceiling.fidelity.as_dict()},
        "candidates": [_candidate_data(candidate) for candidate in comparison.candidates],
        "missing": [
            {"label": missing.label, "error": f"{type(missing.error).__name__}: {missing.error}"}
            for missing in comparison.missing
        ],
        **described,
    }


def _candidate_data(candidate: Candidate) -> dict[str, Any]:
    return {
        "label": candidate.label,
        "attention": candidate.attention.as_dict(),
        "cost": candidate.video.cost.as_dict() | {"level_choice_seconds": candidate.level_choice_seconds},
        "fidelity": candidate.fidelity.as_dict(),
    }
