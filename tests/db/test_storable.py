from db.storable import storable


class TestStorable:
    def test_values_that_postgres_refuses_are_mended(self) -> None:
        said = {"loss": float("nan"), "list": [float("inf"), 1.5], "te\0xt": "a\0b\ud800"}
        assert storable(said) == {"loss": None, "list": [None, 1.5], "te�xt": "a�b?"}
