import pytest

from cli.text import duration, figure, harmless, size


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (0, "0 s"),
        (0.42, "0.4 s"),
        (41.2, "41 s"),
        (59.7, "1m 00s"),
        (185, "3m 05s"),
        (7620, "2h 07m"),
        (-3, "0 s"),
    ],
)
def test_writes_a_duration_for_a_person(seconds: float, written: str) -> None:
    assert duration(seconds) == written


@pytest.mark.parametrize(
    ("count", "written"), [(0, "0 B"), (999, "999 B"), (3_141_592, "3.1 MB"), (999_700_000, "1.0 GB")]
)
def test_writes_a_size_in_decimal_units(count: int, written: str) -> None:
    assert size(count) == written


@pytest.mark.parametrize(
    ("value", "written"), [(0.00002, "2.00e-05"), (0.98765, "0.9877"), (12_345.6, "12,346")]
)
def test_writes_a_figure_with_few_digits(value: float, written: str) -> None:
    assert figure(value) == written


class TestHarmless:
    def test_takes_out_escape_sequences_whole(self) -> None:
        assert harmless("a\x1b[31mb\x1b]0;title\x07c\x1bPd") == "abcd"

    def test_takes_out_every_other_control_character(self) -> None:
        assert harmless("a\x00\x08\x9b\rb\n\tc") == "ab\n\tc"

    def test_takes_out_what_turns_the_direction(self) -> None:
        assert harmless("invoice\u202efdp.exe\u202c \u2066x\u2069") == "invoicefdp.exe x"

    def test_leaves_scripts_and_emoji_alone(self) -> None:
        text = "می‌خواهم 👩‍🔧 naïve"
        assert harmless(text) == text
