"""Whether a training fits where it is to run, and what would make it fit: each step of the ladder is reckoned
through the same arithmetic until one does."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from training_data.footprint import Memory, device_memory, host_memory
from training_data.hyperparameters import LEAST_BATCHES
from training_data.machines import Machine
from training_data.model_shape import ALL_LINEAR, ModelShape
from training_data.placement import ALONE, Placement, Placing

# An estimate this far above a limit may still turn out to fit: it is told, and tried.
UNSURE = 1.2
LEAST_LENGTH = 64
# In the order in which they cost least: nothing but time, then bits, then what is learnt from.
LADDER = ("batch_size", "gradient_checkpointing", "bits", "tuning", "max_length")
# Of an adapter in place of all weights, whose hyperparameters tell none.
USUAL_ADAPTER = {"lora_rank": 16, "lora_target_modules": ALL_LINEAR}
# Those that `auto` may settle on by itself.
HARMLESS = ("batch_size", "gradient_checkpointing", "bits")


@dataclass(frozen=True)
class Need:
    """What a training takes on one machine, beside what there is.

    Args:
        device: of each of its GPUs that the training uses.
        correction: by how much finished trainings there came to more, or less, than the arithmetic says.
    """

    machine: Machine
    ram: Memory
    device: Memory | None
    correction: float = 1.0
    placement: Placement = ALONE

    @property
    def peak_bytes(self) -> int:
        """At the place that the trainings are measured by: the device, or else the host's memory."""
        return int((self.device or self.ram).total * self.correction)

    @property
    def ram_bytes(self) -> int:
        return self.ram.total if self.device is not None else self.peak_bytes

    @property
    def share(self) -> float:
        """Of what there is, in the place that is fuller; 0 where that is not known."""
        shares = [(self.ram_bytes, self.machine.usable_ram)]
        if self.device is not None:
            shares.append((self.peak_bytes, self.machine.usable_device))
        return max((need / limit for need, limit in shares if limit), default=0.0)

    @property
    def fits(self) -> bool:
        return self.share <= 1.0

    @property
    def cannot_fit(self) -> bool:
        return self.share > UNSURE


@dataclass(frozen=True)
class Fitting:
    """Args:
    longest: tokens of the longest row.
    corrections: as of `Need`, by the machine.
    rows: that there are; a micro-batch has no more.
    placing: what decides how it is spread over a machine's GPUs.
    """

    shape: ModelShape
    longest: int
    corrections: Mapping[Machine, float]
    rows: int
    placing: Placing = field(default_factory=lambda: Placing({}))

    def on(self, machine: Machine, chosen: Mapping[str, Any]) -> Need:
        gpu = machine.device is not None
        placement, settled = self.placing.on(machine, chosen, self.shape.parameters)
        of_each = {**USUAL_ADAPTER, **chosen, **settled}
        of_each["batch_size"] = min(int(of_each["batch_size"]), self.rows)
        return Need(
            machine=machine,
            ram=host_memory(self.shape, of_each, self.longest, gpu=gpu, placement=placement),
            device=device_memory(self.shape, of_each, self.longest, placement) if gpu else None,
            correction=self.corrections.get(machine, 1.0),
            placement=placement,
        )

    def best(self, chosen: Mapping[str, Any]) -> Need:
        """On the machine with the most room for it."""
        return min((self.on(machine, chosen) for machine in self.corrections), key=lambda need: need.share)

    def changes(self, chosen: Mapping[str, Any], knobs: tuple[str, ...] = LADDER) -> list[dict[str, Any]]:
        """The changes that make it fit: each knob by itself where that is enough, else several together."""
        alone = [found for knob in knobs if (found := self._turned(chosen, {}, knob)) is not None]
        if alone:
            return alone
        together: dict[str, Any] = {}
        for knob in knobs:
            found = self._turned(chosen, together, knob)
            if found is not None:
                return [self._least(chosen, found)]
            last = list(_positions(knob, {**chosen, **together}))[-1:]
            together |= last[0] if last else {}
        return []

    def _turned(
        self, chosen: Mapping[str, Any], already: Mapping[str, Any], knob: str
    ) -> dict[str, Any] | None:
        """The first position of a knob at which it fits, with the changes made `already`."""
        for position in _positions(knob, {**chosen, **already}):
            changed = {**already, **position}
            if self.best({**chosen, **changed}).fits:
                return changed
        return None

    def _least(self, chosen: Mapping[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
        """Without those of the changes that it fits without."""
        for knob in list(changes):
            without = {name: value for name, value in changes.items() if name != knob}
            if without and self.best({**chosen, **without}).fits:
                changes = without
        return changes


def _positions(knob: str, chosen: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What a knob can be turned to, one after another, the least change first."""
    if knob == "batch_size":
        batch, accumulation = int(chosen["batch_size"]), int(chosen["gradient_accumulation_steps"])
        effective = batch * accumulation
        for smaller in range(batch - 1, LEAST_BATCHES.get(chosen.get("method", ""), 1) - 1, -1):
            if effective % smaller == 0:
                yield {"batch_size": smaller, "gradient_accumulation_steps": effective // smaller}
    elif knob == "gradient_checkpointing" and not chosen[knob]:
        yield {knob: True}
    elif knob == "bits" and chosen.get("tuning", "lora") == "lora":
        for higher, lower in pairwise((16, 8, 4)):
            if int(chosen["bits"]) >= higher and not (lower == 8 and chosen.get("use_dora")):
                yield {knob: lower}
    elif knob == "tuning" and chosen.get(knob, "lora") == "full":
        yield {knob: "lora", "bits": 4}
    elif knob == "max_length":
        # By GRPO it is the answers that can be shorter: prompts are what they are.
        answer = int(chosen.get("max_completion_length", 0))
        prompt = int(chosen[knob]) - answer if answer else 0
        length = (answer or int(chosen[knob])) // 2
        while length >= LEAST_LENGTH:
            yield {**({"max_completion_length": length} if answer else {}), knob: prompt + length}
            length //= 2


def describe(changes: Mapping[str, Any]) -> str:
    """Changes in words: `batch_size 2 and gradient_checkpointing true`."""
    told = [
        f"{name} {str(value).lower() if isinstance(value, bool) else value}"
        for name, value in changes.items()
        if name != "gradient_accumulation_steps"  # it follows from the batch
    ]
    return " and ".join(told)


SMALLER_TRAINING = "No smaller batch_size, bits or max_length would make it fit: choose a smaller base_model."


def refusal(
    need: Need,
    changes: list[dict[str, Any]],
    *,
    what: str = "This training",
    otherwise: str = SMALLER_TRAINING,
) -> str:
    """Why it cannot fit, and what would make it fit."""
    machine = need.machine
    place, there, wanted = f"{machine.host}'s memory", machine.ram_bytes, need.ram_bytes
    usable = machine.usable_device
    if need.device is not None and usable and need.peak_bytes / usable >= need.share:
        place, there, wanted = str(machine), machine.device_bytes, need.peak_bytes
        if machine.devices > 1:
            what, place = f"Of each GPU, {what[0].lower()}{what[1:]}", f"the smallest of {machine}"
    fitting = f"It would fit with {', or with '.join(map(describe, changes))}."
    advice = fitting if changes else otherwise
    return f"{what} needs about {size(wanted)}, and {place} has {size(there or 0)}. {advice}"


def size(bytes_: int) -> str:
    return f"{bytes_ / 1e9:.1f} GB" if bytes_ >= 1e9 else f"{bytes_ / 1e6:.0f} MB"
