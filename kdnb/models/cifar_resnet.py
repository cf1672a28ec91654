"""The CIFAR ResNets of He et al. 2015 (arXiv:1512.03385, section 4.2), registered with timm.

Three stages of 16, 32 and 64 channels at 32, 16 and 8 pixels, 6n + 2 layers, shortcuts without weights (option A: every
second pixel, missing channels zero). `cifar_resnet20`, `32`, `44`, `56` and `110` (0.27, 0.46, 0.66, 0.85 and 1.7 million
weights) load the published state dicts with the keys of the common PyTorch implementation; `cifar_resnet8` (0.08 million),
with a smaller `width` perhaps, is a student. Import this module and `timm.create_model` knows them.
"""

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from torch import nn
from torch.nn import functional as F

DEPTHS = (8, 20, 32, 44, 56, 110)


class _Block(nn.Module):
    """Two 3x3 convolutions around a shortcut: [B, in, H, W] -> [B, out, H / stride, W / stride]."""

    def __init__(self, width_in: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.padding = stride, (width - width_in) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.padding:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(out + x)


class CifarResNet(nn.Module):
    """A CIFAR ResNet in timm's model protocol: pooled features are [B, 4 width], logits [B, num_classes] (0: no head).

    `width` is the number of channels of the first stage, 16 in the paper; each stage doubles it.
    """

    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module

    def __init__(self, depth: int, num_classes: int = 10, in_chans: int = 3, drop_rate: float = 0.0, width: int = 16):
        super().__init__()
        blocks, widths = (depth - 2) // 6, (width, 2 * width, 4 * width)
        self.num_classes, self.drop_rate, self.grad_checkpointing = num_classes, drop_rate, False
        self.num_features = self.head_hidden_size = widths[-1]
        self.conv1 = nn.Conv2d(in_chans, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        before = width
        self.feature_info = []
        for number, channels in enumerate(widths):
            first = _Block(before, channels, stride=1 if number == 0 else 2)
            rest = [_Block(channels, channels, stride=1) for _ in range(blocks - 1)]
            self.add_module(f"layer{number + 1}", nn.Sequential(first, *rest))
            self.feature_info.append({"num_chs": channels, "reduction": 2**number, "module": f"layer{number + 1}"})
            before = channels
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def set_grad_checkpointing(self, enable: bool = True):
        """Recompute activations in the backward pass instead of keeping them."""
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None):
        """Replace the head by a new one (0: none)."""
        self.num_classes = num_classes
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def forward_intermediates(self, x, indices=None, norm=False, stop_early=False, output_fmt="NCHW", intermediates_only=False):
        """Features after the stages `indices` (None: all three), [B, C, H, W] each, as timm's models give them."""
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt is {output_fmt!r}; a ResNet's features are NCHW.")
        stages = range(3)
        indices = stages if indices is None else stages[-indices:] if isinstance(indices, int) else indices
        wanted = {stages[index] for index in indices}  # negative ones count from the end
        middle = []
        x = F.relu(self.bn1(self.conv1(x)))
        for number, stage in enumerate((self.layer1, self.layer2, self.layer3)):
            if stop_early and number > max(wanted, default=-1):
                break
            x = checkpoint_seq(stage, x) if self.grad_checkpointing and self.training else stage(x)
            if number in wanted:
                middle.append(x)
        return middle if intermediates_only else (x, middle)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] -> [B, 4 width, H / 4, W / 4]."""
        return self.forward_intermediates(x, indices=[])[0]

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """[B, 4 width, h, w] -> logits, or pooled features [B, 4 width] with `pre_logits`."""
        x = F.dropout(x.mean((2, 3)), self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] -> [B, num_classes], or [B, 4 width] without a head."""
        return self.forward_head(self.forward_features(x))


def _published_keys(state: dict, model: nn.Module) -> dict:
    """State dict with the names of the published files, turned into this module's."""
    names = {name: name.removeprefix("module.").replace("linear.", "fc.") for name in state}
    return {new: state[old] for old, new in names.items()}


default_cfgs = generate_default_cfgs(
    {
        f"cifar_resnet{depth}.untrained": {
            "num_classes": 10, "input_size": (3, 32, 32), "pool_size": (8, 8), "crop_pct": 1.0, "interpolation": "bicubic",
            "mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD, "first_conv": "conv1", "classifier": "fc",
        }
        for depth in DEPTHS
    }
)  # fmt: skip


def _register(depth: int):
    """Make `cifar_resnet<depth>` a name that timm knows, and a function of this module."""

    def create(pretrained: bool = False, **kwargs) -> CifarResNet:
        return build_model_with_cfg(
            CifarResNet,
            name,
            pretrained,
            pretrained_filter_fn=_published_keys,
            feature_cfg={"out_indices": (0, 1, 2), "feature_cls": "getter"},  # features_only through forward_intermediates
            depth=depth,
            **kwargs,
        )

    name = create.__name__ = f"cifar_resnet{depth}"
    globals()[name] = register_model(create)


for _depth in DEPTHS:
    _register(_depth)
