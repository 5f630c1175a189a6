"""Train the bundled digits networks and write their folders in models/.

    python scripts/train_digits.py [NAME ...]

The data are the 1,797 handwritten digits of 8 x 8 pixels from the UCI repository that scikit-learn
ships. A stratified fifth of 360 images is held out and used once, after training, to measure the
accuracy that the recipe records; nothing is chosen by it. Training runs for a fixed number of
epochs, seeded, on one thread, so that a repeat on the same machine gives the same weights.

Beside them go the held-out images (``evaluation.npz``) and the first of the training images
(``calibration.npz``), from which the ranges for int8 are taken.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn import functional

from aff_deploy import nets

MODELS = Path(__file__).resolve().parent.parent / "models"
DESCRIPTIONS = {
    "aff_resnet_digits": "Small ResNet fused by AFF in all six blocks, trained on the UCI handwritten digits",
    "iaff_resnet_digits": "Small ResNet fused by iAFF in all six blocks, trained on the UCI handwritten digits",
}
SEED = 20201001
HELD_OUT = 360
CALIBRATION = 128
EPOCHS = 60
BATCH = 64
LEARNING_RATE = 4e-3
WEIGHT_DECAY = 0.02
LABEL_SMOOTHING = 0.05

# Pixels are 0 to 16; mean and standard deviation are those of the whole data set after scaling.
SCALE, MEAN, STD = 0.0625, 0.305, 0.376

RECIPE = """\
# Written by scripts/train_digits.py
name = "{name}"
description = "{description}"
network = "aff_deploy.nets:{name}"

[weights]
file = "weights.safetensors"
sha256 = "{weights_sha256}"

[[inputs]]
name = "input"
shape = ["batch", 1, 8, 8]
min = [1, 1, 8, 8]
opt = [8, 1, 8, 8]
max = [32, 1, 8, 8]

# Pixels are 0 (paper) to 16 (ink).
[preprocessing]
scale = {scale}
mean = [{mean}]
std = [{std}]

# Held out of the training: a stratified fifth of the data set.
# Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, CC BY 4.0.
[evaluation]
data = "evaluation.npz"
sha256 = "{data_sha256}"
input = "images"
labels = "labels"
samples = {samples}
accuracy = {accuracy}

# Images of the training.
[calibration]
data = "calibration.npz"
sha256 = "{calibration_sha256}"
input = "images"
samples = {calibration_samples}

[serving]
max_batch_size = 32
"""


@dataclass(frozen=True)
class Split:
    """Raw images (N x 1 x 8 x 8, uint8, 0 to 16) and labels (N, int64)."""

    images: np.ndarray
    labels: np.ndarray

    def tensors(self) -> tuple[Tensor, Tensor]:
        """The preprocessed images (float32) and the labels."""
        images = (self.images.astype(np.float32) * np.float32(SCALE) - np.float32(MEAN)) / np.float32(STD)
        return torch.from_numpy(images), torch.from_numpy(self.labels)


def load_splits() -> tuple[Split, Split]:
    """Training and held-out data."""
    digits = load_digits()
    images = digits.images.astype(np.uint8)[:, None]
    labels = digits.target.astype(np.int64)
    parts = train_test_split(images, labels, test_size=HELD_OUT, stratify=labels, random_state=SEED)
    return Split(parts[0], parts[2]), Split(parts[1], parts[3])


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image turned by up to 10 degrees, scaled by up to 10 % and moved by up to 0.8 pixels."""

    def draw(limit: float) -> Tensor:
        return (torch.rand(len(images), generator=generator) * 2 - 1) * limit

    angle, size = torch.deg2rad(draw(10.0)), 1 + draw(0.1)
    cos, sin = torch.cos(angle) / size, torch.sin(angle) / size
    across, down = draw(0.2), draw(0.2)  # the image spans -1 to 1, a pixel is 0.25
    transform = torch.stack([torch.stack([cos, -sin, across], 1), torch.stack([sin, cos, down], 1)], 1)
    grid = functional.affine_grid(transform, list(images.shape), align_corners=False)
    paper = -MEAN / STD
    return functional.grid_sample(images - paper, grid, align_corners=False) + paper


def train(network: nn.Module, data: Split, *, epochs: int = EPOCHS) -> None:
    """Train `network` in place, on all of `data`, and leave it in eval mode."""
    images, labels = data.tensors()
    generator = torch.Generator().manual_seed(SEED)
    steps = len(images) // BATCH
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, epochs * steps)
    network.train()
    for _ in range(epochs):
        # An incomplete last batch is left out: the global branches normalise over the batch.
        for batch in torch.randperm(len(images), generator=generator)[: steps * BATCH].split(BATCH):  # type: ignore[no-untyped-call]
            logits = network(augment(images[batch], generator))
            loss = functional.cross_entropy(logits, labels[batch], label_smoothing=LABEL_SMOOTHING)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    network.eval()


def accuracy(network: nn.Module, data: Split) -> float:
    """The part of `data` that `network` labels correctly."""
    images, labels = data.tensors()
    with torch.inference_mode():
        return float((network(images).argmax(1) == labels).double().mean())


def write_data(folder: Path, training: Split, held_out: Split) -> tuple[Path, Path]:
    """Write ``evaluation.npz`` (raw images and labels) and ``calibration.npz`` (raw images) into `folder`."""
    evaluation, calibration = folder / "evaluation.npz", folder / "calibration.npz"
    np.savez_compressed(evaluation, images=held_out.images, labels=held_out.labels)
    np.savez_compressed(calibration, images=training.images[:CALIBRATION])
    return evaluation, calibration


def file_sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the bundled digits networks.")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"which ones ({', '.join(DESCRIPTIONS)}); all if none is named"
    )
    names = parser.parse_args().names or list(DESCRIPTIONS)
    if unknown := [name for name in names if name not in DESCRIPTIONS]:
        parser.error(f"unknown network {unknown[0]!r}; choose from {', '.join(DESCRIPTIONS)}")
    torch.set_num_threads(1)
    training, held_out = load_splits()
    for name in names:
        started = time.perf_counter()
        torch.manual_seed(SEED)
        network: nn.Module = getattr(nets, name)()
        train(network, training)
        reached = accuracy(network, held_out)
        folder = MODELS / name
        folder.mkdir(parents=True, exist_ok=True)
        weights = folder / "weights.safetensors"
        safetensors.torch.save_file(network.state_dict(), weights)
        weights.chmod(0o644)  # safetensors makes it private
        evaluation, calibration = write_data(folder, training, held_out)
        text = RECIPE.format(
            name=name,
            description=DESCRIPTIONS[name],
            weights_sha256=file_sha256(weights),
            data_sha256=file_sha256(evaluation),
            calibration_sha256=file_sha256(calibration),
            calibration_samples=CALIBRATION,
            scale=SCALE,
            mean=MEAN,
            std=STD,
            samples=len(held_out.labels),
            accuracy=round(reached, 4),
        )
        (folder / "recipe.toml").write_text(text, encoding="utf-8")
        print(
            f"{name}: accuracy {reached:.4f} on {len(held_out.labels)} held-out images, {time.perf_counter() - started:.0f} s"
        )


if __name__ == "__main__":
    main()
