import pytest

from retrieval.language import SAMPLE_CHARACTERS, SAMPLES, detect


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The committee decides how many days of holidays there are.", "english"),
        ("Der Ausschuss entscheidet über die Zahl der Urlaubstage.", "german"),
        ("Комитет решает, сколько дней отпуска будет.", "russian"),
        ("委员会决定假期的天数。", "chinese"),
        ("委員会は休暇の日数を決めます。", "japanese"),
        ("คณะกรรมการเป็นผู้กำหนดจำนวนวันหยุด", "thai"),
        ("تقرر اللجنة عدد أيام الإجازة.", "arabic"),
        ("הוועדה מחליטה כמה ימי חופשה יש.", "hebrew"),
        ("1234 | 456 | 33", "simple"),
        ("", "simple"),
    ],
)
def test_detects(text: str, language: str) -> None:
    assert detect(text) == language


def test_looks_at_all_of_a_long_text() -> None:
    title = "0123 4567 " * SAMPLE_CHARACTERS
    assert (
        detect(title + "La commission décide du nombre de jours de congé. " * SAMPLES * SAMPLE_CHARACTERS)
        == "french"
    )
