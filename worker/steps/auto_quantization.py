"""`auto`: of the quantizations that were made to choose from, the smallest that costs next to nothing.

What each costs is measured, from the smallest on, until one stays within the operator's bound
(LATHE_AUTO_MAX_KL) and passes verification as any file must.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from db.errors import InvalidInput
from db.params.values import AUTO, AUTO_QUANTIZATIONS
from worker.step import Step

JSON = dict[str, Any]


class HasFigures(Protocol):
    @property
    def figures(self) -> JSON: ...


MeasuredT = TypeVar("MeasuredT", bound=HasFigures)


@dataclass(frozen=True)
class Choice(Generic[MeasuredT]):
    """The files that were measured, and the types that are published, in the order asked for."""

    measured: list[MeasuredT]
    published: list[str]


def is_choice(step: Step, quantization: str) -> bool:
    """Whether `auto` alone asks for this type, so that another may be published in its place."""
    asked = step.input.params["quantizations"] or []
    return AUTO in asked and quantization in AUTO_QUANTIZATIONS and quantization not in asked


def measure_asked(
    step: Step, files: Iterable[JSON], measure: Callable[[JSON], MeasuredT]
) -> Choice[MeasuredT]:
    """Measure the files of the types that were asked for, and settle what `auto` is.

    Args:
        files: as the export step returned them.
        measure: of one of them; it raises InvalidInput of one that does not pass.

    Raises:
        InvalidInput: a type that was asked for does not pass, or none that `auto` chooses from.
    """
    rows = list(files)
    asked: list[str] = step.input.params["quantizations"] or [row["quantization"] for row in rows]
    measured = {row["quantization"]: measure(row) for row in rows if row["quantization"] in asked}
    if AUTO not in asked:
        return Choice(list(measured.values()), list(measured))
    candidates = [row for row in rows if row["quantization"] in AUTO_QUANTIZATIONS]
    chosen = _choose(step, candidates, measure, measured)
    published = dict.fromkeys(chosen if name == AUTO else name for name in asked)
    return Choice(list(measured.values()), list(published))


def _choose(
    step: Step,
    candidates: list[JSON],
    measure: Callable[[JSON], MeasuredT],
    measured: dict[str, MeasuredT],
) -> str:
    """Adds to `measured`. Where none is within the bound, it is the nearest that passes, and that is said."""
    limit = step.input.settings.auto_max_kl
    refusal: InvalidInput | None = None
    passed: dict[str, float] = {}
    for row in sorted(candidates, key=lambda row: int(row["bytes"])):
        name = row["quantization"]
        try:
            if name not in measured:
                measured[name] = measure(row)
        except InvalidInput as error:
            refusal = error
            step.event(f"{name} is not taken: {error.message}", level="warn", quantization=name)
            continue
        figures = measured[name].figures
        passed[name] = figures["kl"]
        if figures["kl"] <= limit:
            step.event(
                f"The quantization is {name}, the smallest within the bound: KL {figures['kl']:.5f} nats of "
                f"at most {limit}, {row['bytes'] / 1e6:.1f} MB.",
                quantization=name,
                kl=figures["kl"],
                limit=limit,
                tried=passed,
            )
            return name
    if not passed:
        raise refusal or InvalidInput("There is no file to choose from.", code="verification_failed")
    name = min(passed, key=passed.__getitem__)
    step.event(
        f"The quantization is {name}: no type is within the bound of {limit} nats, and this one is nearest "
        f"to the weights (KL {passed[name]:.5f}).",
        level="warn",
        quantization=name,
        kl=passed[name],
        limit=limit,
        tried=passed,
    )
    return name
