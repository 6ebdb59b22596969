"""The field's usual training loop, written once, honestly, and without any part of this engine.

As public distillation code has it: PIL transforms in a DataLoader with worker processes, single precision, contiguous layout,
torch's default SGD with numbers for learning rates, the teacher's forward in full precision, the short last batch kept, and
loss and accuracy read back after every step. `speed` times the engine against it; `tests/test_parity.py` compares the weights
that both arrive at.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms

from bench.data import Dataset, Split
from bench.errors import UserError
from bench.models import Network
from bench.records.recipe import Recipe
from methods.base import Batch, Method, Networks, Output


class PilImages(TorchDataset):
    """(image (C, H, W), label, position) one at a time, out of PIL images.

    Args:
        augment: crop and flip as the recipe has it; False for images to evaluate on.
    """

    def __init__(self, split: Split, data: Dataset, recipe: Recipe, augment: bool = True) -> None:
        assert isinstance(split.images, Tensor)
        array = split.images.permute(0, 2, 3, 1).numpy()
        self.images = [Image.fromarray(image.squeeze()) for image in array]
        self.targets = split.targets.tolist()
        steps: list[object] = []
        if augment and recipe.crop == "pad":
            mode = "reflect" if recipe.padding == "reflect" else "constant"
            steps.append(transforms.RandomCrop(array.shape[1], padding=recipe.crop_padding, padding_mode=mode))
        if augment and recipe.crop == "resized":
            steps.append(transforms.RandomResizedCrop(recipe.image_size or array.shape[1]))
        if augment and recipe.flip:
            steps.append(transforms.RandomHorizontalFlip())
        self.transform = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(data.mean, data.std)])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return self.transform(self.images[index]), self.targets[index], index


def training_loader(split: Split, data: Dataset, recipe: Recipe, device: torch.device, workers: int) -> DataLoader:
    """Shuffled, augmented batches of (images, labels, positions), the short last one included.

    Args:
        workers: processes that load data.
    """
    return DataLoader(
        PilImages(split, data, recipe),
        batch_size=recipe.batch_size,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )


LACKS = (
    *("optimizer", "decay_all", "drop_path", "accumulate"),
    *("augment", "color_jitter", "random_erasing", "repeats"),
)  # fields of a recipe that this loop knows at their defaults alone


class UsualLoop:
    """One student under the usual loop: `train` trains it, `step` takes single steps to be timed.

    Args:
        student, teacher, others: on the device, as they compute; teachers are frozen and in eval mode.
        method: after its `setup`, without a preparation and without partner images.
        loader: batches of (images, labels, positions in the training set).
        recipe: its optimizer and its `step` schedule; moving average, clipping and mixed labels are not in this loop.

    Attributes:
        batches: of the same size, without end, for `step`; a short last one is left out, so that all steps cost the same.
        loss, correct: of the last step, as numbers; the second is a share.

    Raises:
        UserError: the recipe has what this loop lacks.
    """

    def __init__(
        self,
        student: Network,
        teacher: Network | None,
        method: Method,
        loader: DataLoader,
        recipe: Recipe,
        device: torch.device,
        others: tuple[Network, ...] = (),
    ) -> None:
        if lacking := [name for name in LACKS if getattr(recipe, name) != Recipe.model_fields[name].default]:
            raise UserError(
                f"the usual loop knows no recipe.{', recipe.'.join(lacking)}: leave it at its default to compare with"
            )
        self.student, self.method = student.train(), method
        self.loader, self.recipe, self.device = loader, recipe, device
        self.networks = Networks(student, teacher, others)
        student.register_forward_hook(self._keep_logits)
        parameters = [*student.parameters(), *(p for p in method.parameters() if p.requires_grad)]
        self.optimizer = torch.optim.SGD(
            parameters, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov, weight_decay=recipe.weight_decay
        )
        self.batches = self._endless()
        self.loss = self.correct = 0.0

    def train(self, test: DataLoader) -> list[float]:
        """Train all epochs; test accuracy in percent after each."""
        accuracies = []
        for epoch in range(self.recipe.epochs):
            self.train_epoch(epoch)
            accuracies.append(self.evaluate(test))
        return accuracies

    def train_epoch(self, epoch: int) -> None:
        """One epoch, 0-based.

        Raises:
            ValueError: the recipe has another schedule than `step`, or a warm-up.
        """
        self.adjust_learning_rate(epoch)
        self.student.train()
        self.method.train()
        steps = len(self.loader)
        for index, batch in enumerate(self.loader):
            self._step(batch, epoch, (epoch + index / steps) / self.recipe.epochs)

    def adjust_learning_rate(self, epoch: int) -> None:
        """Multiply the recipe's learning rate by gamma once for each milestone that is reached."""
        recipe = self.recipe
        if recipe.schedule != "step" or recipe.warmup_epochs:
            raise ValueError("the usual loop has the schedule `step` alone, without a warm-up")
        lr = recipe.lr
        for share in recipe.milestones:
            if epoch >= max(1, round(share * recipe.epochs)):
                lr *= recipe.gamma
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    @torch.no_grad()
    def evaluate(self, test: DataLoader) -> float:
        """Accuracy in percent of what the method deploys."""
        network = self.method.predictor(self.student).eval()
        correct = total = 0
        for image, target, _ in test:
            logits = network(image.to(self.device)).logits
            correct += int((logits.argmax(1) == target.to(self.device)).sum())
            total += len(target)
        return 100 * correct / total

    def step(self) -> None:
        """Take a step on the next of `batches`, at the optimizer's present learning rate."""
        self._step(next(self.batches), 0, 0.0)

    def _step(self, batch: tuple[Tensor, Tensor, Tensor], epoch: int, progress: float) -> None:
        image, target, index = (tensor.to(self.device) for tensor in batch)
        given = Batch(image, target, index, epoch=epoch, epochs=self.recipe.epochs, progress=progress)
        terms = self.method.step(self.networks, given)
        loss = sum(terms.values(), torch.zeros((), device=self.device))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.loss = loss.item()
        self.correct = (self.logits.detach().argmax(1)[: len(target)] == target).float().mean().item()

    def _keep_logits(self, network: nn.Module, inputs: tuple[Tensor], output: Output) -> None:
        self.logits = output.logits

    def _endless(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        while True:
            for batch in self.loader:
                if len(batch[1]) == self.recipe.batch_size or len(self.loader) == 1:
                    yield batch
