"""The trained networks do what their recipes say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aff_deploy.nets.resolve import resolve_network

NAMES = ("aff_resnet_digits", "iaff_resnet_digits")


@pytest.mark.parametrize("name", NAMES)
def test_accuracy_is_as_recorded(name: str) -> None:
    network = resolve_network(name)
    assert network.recipe is not None
    evaluation = network.recipe.checked_evaluation()
    assert evaluation is not None
    assert evaluation.accuracy is not None
    with np.load(evaluation.data, allow_pickle=False) as data:
        images, labels = data[evaluation.inputs["input"]], data[evaluation.labels]
    assert images.shape == (360, 1, 8, 8)
    assert evaluation.samples == len(labels) == 360
    with torch.inference_mode():
        answers = network.module(torch.from_numpy(network.recipe.preprocessing.apply(images))).argmax(1).numpy()
    reached = float((answers == labels).mean())
    # One image of slack: other processors round differently.
    assert abs(reached - evaluation.accuracy) <= 1.01 / 360
    assert evaluation.accuracy >= 0.98


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_small(name: str) -> None:
    weights = resolve_network(name).weights
    assert weights is not None
    assert weights.stat().st_size < 1_500_000


def test_held_out_images_are_of_every_class() -> None:
    recipes = [resolve_network(name).recipe for name in NAMES]
    for recipe in recipes:
        assert recipe is not None
        assert recipe.evaluation is not None
        with np.load(recipe.evaluation.data, allow_pickle=False) as data:
            assert np.bincount(data["labels"]).min() >= 34
