"""The field's usual training loop, written once, honestly, to measure this engine against. Nothing else uses it.

As public distillation code has it: PIL transforms in a DataLoader with worker processes, single precision, contiguous layout,
torch's default SGD, the teacher's forward in full precision, and loss and accuracy read back after every step.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms

from bench.data import Dataset, Split
from bench.models import Network
from bench.records.recipe import Recipe
from methods.base import Batch, Method, Networks, Output
from methods.parts import Wrapped


class PilImages(TorchDataset):
    """(augmented image (C, H, W), label, position) one at a time, out of PIL images."""

    def __init__(self, split: Split, data: Dataset, recipe: Recipe) -> None:
        assert isinstance(split.images, Tensor)
        array = split.images.permute(0, 2, 3, 1).numpy()
        self.images = [Image.fromarray(image.squeeze()) for image in array]
        self.targets = split.targets.tolist()
        mode = "reflect" if recipe.padding == "reflect" else "constant"
        steps = [transforms.RandomCrop(array.shape[1], padding=recipe.crop_padding, padding_mode=mode)]
        steps += [transforms.RandomHorizontalFlip()] if recipe.flip else []
        self.transform = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(data.mean, data.std)])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return self.transform(self.images[index]), self.targets[index], index


class Student(Wrapped):
    """Keeps the logits of its last call, for the accuracy of a step."""

    logits: Tensor

    def __call__(self, image: Tensor) -> Output:
        output = super().__call__(image)
        self.logits = output.logits
        return output


class Teacher(Wrapped):
    def __call__(self, image: Tensor) -> Output:
        with torch.no_grad():
            return super().__call__(image)


class UsualLoop:
    """One student under the usual loop, ready to take steps.

    Args:
        student, teacher: on the device, in single precision.
        method: after its `setup`.
        workers: processes that load data.
    """

    def __init__(
        self,
        student: Network,
        teacher: Network | None,
        method: Method,
        split: Split,
        data: Dataset,
        recipe: Recipe,
        device: torch.device,
        workers: int,
    ) -> None:
        self.method, self.recipe, self.device = method, recipe, device
        self.student = Student(student.train())
        self.networks = Networks(self.student, Teacher(teacher) if teacher else None)
        parameters = [*student.parameters(), *(p for p in method.parameters() if p.requires_grad)]
        self.optimizer = torch.optim.SGD(
            parameters, lr=0.0, momentum=recipe.momentum, nesterov=recipe.nesterov, weight_decay=recipe.weight_decay
        )
        self.loader = DataLoader(
            PilImages(split, data, recipe),
            batch_size=recipe.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
        )
        self.batches = self._endless()
        self.loss = self.correct = 0.0

    def _endless(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        while True:
            yield from self.loader

    def step(self) -> None:
        image, target, index = (tensor.to(self.device) for tensor in next(self.batches))
        terms = self.method.step(self.networks, Batch(image, target, index, epochs=self.recipe.epochs))
        loss = sum(terms.values(), torch.zeros((), device=self.device))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.loss = loss.item()
        self.correct = (self.student.logits.detach().argmax(1)[: len(target)] == target).float().mean().item()
