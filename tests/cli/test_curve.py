from cli.curve import Curve


def drawn(curve: Curve, columns: int = 60, lines: int = 10) -> str:
    text = curve.draw(columns, lines)
    return text.plain if text is not None else ""


def falling(attempt: int, steps: range, height: float = 4.0) -> Curve:
    curve = Curve()
    for step in steps:
        curve.add(attempt, {"step": step, "loss": height - step / 100})
    return curve


def test_is_not_drawn_from_too_little_or_into_too_little() -> None:
    assert drawn(falling(1, range(2))) == ""
    assert drawn(falling(1, range(20)), columns=30) == ""
    assert drawn(falling(1, range(20)), lines=4) == ""


def test_fills_the_room_it_is_given() -> None:
    lines = drawn(falling(1, range(0, 100, 5)), columns=70, lines=11).splitlines()
    assert len(lines) == 11
    assert {len(line.rstrip()) for line in lines[1:-1]} == {70}


def test_says_what_is_drawn_above_the_curve() -> None:
    curve = falling(1, range(0, 100, 5))
    assert drawn(curve).splitlines()[0].split() == ["⠒⠒", "loss"]
    curve.add(1, {"step": 95, "eval_loss": 2.0})
    legend, *plot = drawn(curve).splitlines()
    assert legend.split() == ["⠒⠒", "loss", "⠒⠒", "validation", "loss"]
    assert not any("loss" in line for line in plot)


def test_forgets_what_a_later_attempt_measures_again() -> None:
    curve = falling(1, range(0, 100, 10))
    curve.add(2, {"step": 50, "loss": 90.0})
    assert "90.0" in drawn(curve)
    assert drawn(curve).splitlines()[-1].split()[-1] == "50"
    curve.add(1, {"step": 95, "loss": 500.0})  # a row of the earlier attempt that came late
    assert "500.0" not in drawn(curve)


def test_leaves_out_what_is_no_number() -> None:
    curve = falling(1, range(5))
    curve.add(1, {"step": 6, "loss": float("nan")})
    curve.add(1, {"text_tokens": 7})
    assert drawn(curve).splitlines()[-1].split()[-1] == "4"


def test_draws_rewards_where_there_are_any() -> None:
    curve = falling(1, range(0, 100, 5))
    for step in range(0, 100, 5):
        curve.add(1, {"step": step, "reward": 700.0 + step})
    curve.add(1, {"step": 95, "eval_reward": 750.0})
    legend, *plot = drawn(curve).splitlines()
    assert legend.split() == ["⠒⠒", "reward", "⠒⠒", "validation", "reward"]
    assert any("795" in line for line in plot)
