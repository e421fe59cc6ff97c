"""What is remembered is bounded, and what was used last stays."""

from lossguard_service.recent import Recent


def test_what_was_used_longest_ago_goes_first() -> None:
    held: Recent[str, int] = Recent(2)
    held.put("a", 1)
    held.put("b", 2)
    assert held.get("a") == 1
    held.put("c", 3)
    assert [held.get(key) for key in "abc"] == [1, None, 3]


def test_what_is_put_again_takes_the_place_of_what_was_there() -> None:
    held: Recent[str, int] = Recent(2)
    for value in (1, 2):
        held.put("a", value)
    assert held.get("a") == 2
    held.drop("a")
    held.drop("a")
    assert held.get("a") is None
