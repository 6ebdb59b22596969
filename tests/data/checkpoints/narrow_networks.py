"""Networks so narrow that checkpoints of them are small. The checkpoints beside this file depend on every layer's name."""

from bench.models import MODELS, Network
from bench.models.resnet import cifar_resnet


@MODELS.register_module()
def narrow8(classes: int, channels: int = 3) -> Network:
    """ResNet-8, 4 to 16 channels."""
    return cifar_resnet(8, (4, 4, 8, 16), classes, channels)


@MODELS.register_module()
def narrow14(classes: int, channels: int = 3) -> Network:
    """ResNet-14, 4 to 16 channels."""
    return cifar_resnet(14, (4, 4, 8, 16), classes, channels)
