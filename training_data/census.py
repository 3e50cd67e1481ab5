"""What is counted of the rows of a training set while they are read, for whoever is to be told of them."""

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from training_data.chat_templates import WEIGHT
from training_data.rows import Row

# What programs write where there was nothing: as an answer, a model would learn to say it.
NOTHING_WORDS = frozenset({"nan", "none", "null", "n/a", "na", "#n/a", "undefined", "-"})
MOST_PLACES = 1000


@dataclass
class Census:
    """Args:
    roles: how many turns there are of each.
    turns: how many rows there are of each number of turns.
    nothing_words: the places of rows whose last answer is a word for nothing.
    same_role_twice: the places of rows in which one role speaks twice without another between.
    """

    rows: int = 0
    roles: Counter[str] = field(default_factory=Counter)
    turns: Counter[int] = field(default_factory=Counter)
    unweighted: int = 0
    nothing_words: list[str] = field(default_factory=list)
    same_role_twice: list[str] = field(default_factory=list)

    def count(self, row: Row, place: str) -> None:
        self.rows += 1
        roles = [message["role"] for message in row.messages]
        self.roles.update(roles)
        self.turns[len(roles)] += 1
        self.unweighted += sum(WEIGHT in message for message in row.messages)
        if any(one == other for one, other in pairwise(roles)):
            self._note(self.same_role_twice, place)
        if roles and roles[-1] == "assistant":
            answers = [row.messages[-1]["content"], *([row.rejected] if row.rejected is not None else [])]
            if any(answer.strip().lower() in NOTHING_WORDS for answer in answers):
                self._note(self.nothing_words, place)

    def as_dict(self) -> dict[str, Any]:
        return {
            "roles": dict(self.roles.most_common()),
            "turns": {str(turns): rows for turns, rows in sorted(self.turns.items())},
            "unweighted_answers": self.unweighted,
            "nothing_words": self.nothing_words,
            "same_role_twice": self.same_role_twice,
        }

    def as_json(self) -> dict[str, Any]:
        """All of it, for `from_json`."""
        return {**vars(self), "roles": dict(self.roles), "turns": dict(self.turns)}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "Census":
        turns = {int(number): rows for number, rows in stored["turns"].items()}
        return cls(**{**stored, "roles": Counter(stored["roles"]), "turns": Counter(turns)})

    def _note(self, places: list[str], place: str) -> None:
        if len(places) < MOST_PLACES:
            places.append(place)
