"""Shapes from the command line to profiles, and what is refused on the way."""

from __future__ import annotations

import pytest

from aff_deploy.engine.profiles import (
    check_profiles,
    default_profiles,
    parse_shapes,
    profiles_from_options,
    suggest_keys,
)
from aff_deploy.errors import UsageError
from aff_deploy.spec import ShapeProfile, TensorSpec

IMAGE = TensorSpec("image", ("batch", 3, 8, 8))
FIXED = TensorSpec("fixed", (1, 4))


def shapes(*words: str) -> tuple[dict[str, tuple[int, ...]], ...]:
    return parse_shapes("--opt-shapes", words)


def test_a_name_given_again_begins_another_profile() -> None:
    assert shapes("a:1x2", "b:3", "a:4x5") == ({"a": (1, 2), "b": (3,)}, {"a": (4, 5)})
    assert shapes("a:1x2,b:3") == ({"a": (1, 2), "b": (3,)},)
    assert shapes() == ()


@pytest.mark.parametrize(
    "word", ["image", "image:1x", "image:axb", ":1x3", "image:1x3x-1", "image:1x3:float16", "image:1x3,", "image:\u0661x3"]
)
def test_a_shape_that_cannot_be_read_is_wrong_usage(word: str) -> None:
    with pytest.raises(UsageError, match="--opt-shapes"):
        shapes(word)


def test_a_bound_left_out_is_the_opt_shape() -> None:
    (profile,) = profiles_from_options([IMAGE], (), shapes("image:4x3x8x8"), ())
    assert profile == ShapeProfile(*({"image": (4, 3, 8, 8)},) * 3)
    (profile,) = profiles_from_options([IMAGE], shapes("image:1x3x8x8"), shapes("image:4x3x8x8"), ())
    assert (profile.min, profile.max) == ({"image": (1, 3, 8, 8)}, {"image": (4, 3, 8, 8)})


@pytest.mark.parametrize("low", [(), ("image:1x3x8x8",)])
@pytest.mark.parametrize("high", [(), ("image:4x3x8x8",)])
def test_bounds_without_an_opt_shape_are_refused(low: tuple[str, ...], high: tuple[str, ...]) -> None:
    if low or high:
        with pytest.raises(UsageError, match="no opt shape"):
            profiles_from_options([IMAGE], shapes(*low), (), shapes(*high))
    else:
        assert profiles_from_options([IMAGE], (), (), ()) == ()


def test_a_name_that_is_no_input_is_refused() -> None:
    with pytest.raises(UsageError, match="--max-shapes names no input 'imago'; the inputs are image, fixed"):
        profiles_from_options([IMAGE, FIXED], (), (), shapes("imago:4x3x8x8"))


def test_a_static_input_is_filled_in_and_a_static_model_needs_no_profile() -> None:
    given = profiles_from_options([IMAGE, FIXED], shapes("image:1x3x8x8"), shapes("image:2x3x8x8"), shapes("image:4x3x8x8"))
    (profile,) = check_profiles([IMAGE, FIXED], given)
    assert profile.max == {"image": (4, 3, 8, 8), "fixed": (1, 4)}
    assert check_profiles([FIXED], ()) == ()


def test_a_dynamic_input_without_shapes_is_told_what_to_add() -> None:
    with pytest.raises(UsageError) as caught:
        check_profiles([IMAGE], ())
    assert caught.value.fix == ("add --min-shapes image:1x3x8x8 --opt-shapes image:8x3x8x8 --max-shapes image:32x3x8x8")


@pytest.mark.parametrize(
    ("low", "usual", "high", "message"),
    [
        ("image:1x3x8x8", "image:8x3x8x8", "image:4x3x8x8", "8x3x8x8 is larger than 4x3x8x8"),
        ("image:1x3x8x8", "image:2x4x8x8", "image:4x3x8x8", "2x4x8x8 does not fit input 'image'"),
        ("image:1x3x8", "image:2x3x8x8", "image:4x3x8x8", "1x3x8 does not fit input 'image'"),
        ("fixed:1x4", "fixed:1x4", "fixed:1x4", "no shapes for the dynamic input 'image'"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(low: str, usual: str, high: str, message: str) -> None:
    given = profiles_from_options([IMAGE, FIXED], shapes(low), shapes(usual), shapes(high))
    with pytest.raises(UsageError, match=message):
        check_profiles([IMAGE, FIXED], given)


@pytest.mark.parametrize("size", [0, -1, 2**40, 1.5])
def test_sizes_that_are_none_are_refused(size: int) -> None:
    profile = ShapeProfile({"image": (1, 3, 8, 8)}, {"image": (1, 3, 8, 8)}, {"image": (size, 3, 8, 8)})
    with pytest.raises(UsageError, match="is no shape for input 'image'"):
        check_profiles([IMAGE], [profile])


def test_profiles_made_in_python_may_leave_out_bounds_but_name_no_others() -> None:
    (profile,) = check_profiles([IMAGE], [ShapeProfile({}, {"image": (4, 3, 8, 8)}, {})])
    assert profile.min == profile.max == {"image": (4, 3, 8, 8)}
    with pytest.raises(UsageError, match="'picture', which is no input"):
        check_profiles([IMAGE], [ShapeProfile({}, {"image": (4, 3, 8, 8), "picture": (1,)}, {})])


BATCHES = [{"image": (batch, 3, 8, 8), "fixed": (1, 4)} for batch in (1, 8, 32)]


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ([IMAGE, FIXED], BATCHES),
        ([TensorSpec("image", ("batch", 3, 8, 8), example=(4, 3, 8, 8))], [{"image": (n, 3, 8, 8)} for n in (1, 4, 32)]),
        ([TensorSpec("image", ("batch", 3, 8, 8), example=(64, 3, 8, 8))], [{"image": (n, 3, 8, 8)} for n in (1, 64, 64)]),
        ([TensorSpec("a", ("n", 2)), TensorSpec("b", ("n",))], [{"a": (n, 2), "b": (n,)} for n in (1, 8, 32)]),
        ([TensorSpec("a", ("n", 2)), TensorSpec("b", ("m", 2))], None),
        ([TensorSpec("a", ("n", 3, "h", 8))], None),
        ([TensorSpec("a", (1, 3, "h", 8))], None),
        ([TensorSpec("a", ("n", "n"))], None),
        ([FIXED], None),
    ],
)
def test_a_lone_dynamic_batch_has_a_default(
    inputs: list[TensorSpec], expected: list[dict[str, tuple[int, ...]]] | None
) -> None:
    if expected is None:
        assert default_profiles(inputs) == ()
    else:
        (profile,) = default_profiles(inputs)
        assert [profile.min, profile.opt, profile.max] == expected
        assert check_profiles(inputs, [profile]) == (profile,)


def test_what_to_add_is_told_in_the_words_of_who_asks() -> None:
    free = TensorSpec("mask", (1, 3, "h", "w"))
    with pytest.raises(UsageError) as caught:
        check_profiles([free], (), suggest=suggest_keys)
    assert caught.value.fix == (
        "add to [[inputs]] 'mask' the lines min = [1, 3, 64, 64] / opt = [1, 3, 64, 64] / max = [1, 3, 64, 64]"
    )
    given = profiles_from_options([IMAGE, free], shapes("image:1x3x8x8"), shapes("image:2x3x8x8"), shapes("image:4x3x8x8"))
    with pytest.raises(UsageError) as caught:
        check_profiles([IMAGE, free], given)
    assert caught.value.fix == "add --min-shapes mask:1x3x64x64 --opt-shapes mask:1x3x64x64 --max-shapes mask:1x3x64x64"


def test_names_with_commas_and_colons_are_read() -> None:
    assert parse_shapes("--opt-shapes", ["a,b:1x2,c:0:3"]) == ({"a,b": (1, 2), "c:0": (3,)},)
