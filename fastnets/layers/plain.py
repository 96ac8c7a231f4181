"""What the plain networks of 2012 to 2014 share: convolutions, then three fully connected layers."""

from __future__ import annotations

from torch import Tensor, nn


class PlainNet(nn.Module):
    """Convolutions, a pooling to a grid of fixed size, and fully connected layers, named as torchvision names them.

    Args:
        features: from (n, 3, h, w) to (n, c, h', w').
        grid: height and width of what the classifier sees; at the size that the network is made for, h' and w'.
        classifier: from (n, c·grid²) to (n, classes).

    Returns:
        (from a call) (n, classes), unnormalised.

    Example:
        >>> import torch
        >>> from fastnets.layers import PlainNet
        >>> PlainNet(torch.nn.Identity(), 2, torch.nn.Linear(12, 10))(torch.zeros(1, 3, 9, 8)).shape
        torch.Size([1, 10])
    """

    def __init__(self, features: nn.Module, grid: int, classifier: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.avgpool = nn.AdaptiveAvgPool2d(grid)
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def fully_connected(in_features: int, num_classes: int) -> nn.Sequential:
    """Three fully connected layers, of which dropout thins out the first two.

    Args:
        in_features: length of the input.
        num_classes: length of the output.

    Returns:
        A module from (n, in_features) to (n, num_classes).
    """
    return nn.Sequential(
        nn.Linear(in_features, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Linear(4096, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Linear(4096, num_classes),
    )


def local_response_norm() -> nn.LocalResponseNorm:
    """AlexNet's: every value is divided by (2 + 10⁻⁴ · sum of squares over 5 neighbouring channels) ** 0.75.

    Paper: A. Krizhevsky, I. Sutskever, G. Hinton, "ImageNet Classification with Deep Convolutional Neural Networks",
    NeurIPS 2012, section 3.3, https://papers.nips.cc/paper/4824

    Example:
        >>> import torch
        >>> from fastnets.layers.plain import local_response_norm
        >>> round(local_response_norm()(torch.full((1, 1, 1, 1), 100.0)).item(), 4), round(100 / 3**0.75, 4)
        (43.8691, 43.8691)
    """
    return nn.LocalResponseNorm(5, alpha=5 * 1e-4, beta=0.75, k=2)  # PyTorch takes the mean of the squares
