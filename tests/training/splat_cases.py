"""The splat's tests keep scenes in dicts of tensors and settings; these functions hand them on as the types that the splat takes."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from storage.records.operators import TokenOperator
from training.splat import Lift, RasterOptions, Splats, TokenTargets, build_token_operator, render_token_targets

GEOMETRY = tuple(field.name for field in fields(Splats))
OPTIONS = tuple(field.name for field in fields(RasterOptions))


def splats_of(case: dict[str, Any]) -> Splats:
    return Splats(**{name: case[name] for name in GEOMETRY if name in case})


def options_of(case: dict[str, Any]) -> RasterOptions:
    return RasterOptions(**{name: case[name] for name in OPTIONS if name in case})


def build(**case: Any) -> TokenOperator:
    """`build_token_operator` of a case."""
    rest = {name: value for name, value in case.items() if name not in (*GEOMETRY, *OPTIONS)}
    return build_token_operator(splats_of(case), options=options_of(case), **rest)


def targets(**case: Any) -> TokenTargets:
    """`render_token_targets` of a case; its Gaussians are those of the pixels of `context_masks` where it has no `lift`."""
    rest = {name: value for name, value in case.items() if name not in (*GEOMETRY, *OPTIONS, "context_masks")}
    if "lift" not in rest:
        rest["lift"] = Lift.from_masks(case["context_masks"], tuple(case["tokens"].shape[1:3]))
    return render_token_targets(splats_of(case), options=options_of(case), **rest)
