"""What a chip can do at most: one table, each number from its vendor's data sheet.

All is of one device as JAX counts them, which of a TPU7x is half a chip. Rates are of dense products;
`link` is what a device can send at once over all its links to others of the same slice or node, in one
direction.
"""

import dataclasses
from typing import Any

_TPU = 'https://cloud.google.com/tpu/docs/'
_NVIDIA = 'https://www.nvidia.com/en-us/data-center/'


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device.

    Attributes:
        kind: a part of JAX's `device_kind`.
        flops: FLOP/s of bfloat16 products with float32 sums.
        float32: FLOP/s of float32 products as JAX does them by default: on a TPU of operands rounded to
            bfloat16, on NVIDIA's of TF32; None where that is not known.
        memory: bytes of its main memory (HBM); None where it is not in the table.
        bandwidth: bytes a second to and from it.
        link: bytes a second that it sends to others.
        source: where the numbers are from.
        devices: of JAX, in a chip as it is paid for.
    """

    kind: str
    flops: float
    float32: float | None = None
    memory: float | None = None
    bandwidth: float | None = None
    link: float | None = None
    source: str = ''
    devices: int = 1

    def peak(self, dtype: str) -> float | None:
        """Returns FLOP/s of products in a compute dtype, such as `bfloat16`; None where it is not known."""
        return self.float32 if dtype == 'float32' else self.flops


_GIB = 2**30
# The first whose kind is a part of the device's counts.
CHIPS = (
    # 800 GB/s in both directions a chip.
    Chip('TPU v6', 918e12, 918e12, 32 * _GIB, 1638e9, 400e9, f'{_TPU}v6e'),
    # 1,600 Gbit/s a chip.
    Chip('TPU v5 lite', 197e12, 197e12, 16 * _GIB, 819e9, 200e9, f'{_TPU}v5e'),
    Chip('TPU v5e', 197e12, 197e12, 16 * _GIB, 819e9, 200e9, f'{_TPU}v5e'),
    # 4,800 Gbit/s a chip, 1,200 GB/s in both directions.
    Chip('TPU v5', 459e12, 459e12, 95 * _GIB, 2765e9, 600e9, f'{_TPU}v5p'),
    # 2,400 Gbit/s a chip.
    Chip('TPU v4', 275e12, 275e12, 32 * _GIB, 1200e9, 300e9, f'{_TPU}v4'),
    # Of a chip 2,307 TFLOP/s, 192 GiB, 7,380 GB/s and 1,200 GB/s in both directions; it is two devices.
    Chip('TPU7x', 1153.5e12, 1153.5e12, 96 * _GIB, 3690e9, 300e9, f'{_TPU}tpu7x', 2),
    # NVLink: 900 GB/s in both directions. Data sheets count sparse products, 1,979 TFLOP/s: these are half.
    Chip('H200', 990e12, 495e12, 141e9, 4800e9, 450e9, f'{_NVIDIA}h200/'),
    Chip('H100', 990e12, 495e12, 80e9, 3350e9, 450e9, f'{_NVIDIA}h100/'),
    Chip('A100', 312e12, 156e12, source=f'{_NVIDIA}a100/'),
    Chip('L40S', 362e12, 183e12, source=f'{_NVIDIA}l40s/'),
    Chip('L40', 181e12, 90.5e12, source=f'{_NVIDIA}l40/'),
    Chip('L4', 121e12, 60e12, source=f'{_NVIDIA}l4/'),
    Chip('T4', 65e12, source=f'{_NVIDIA}tesla-t4/'),
)


def of(device: Any) -> Chip | None:
    """Returns what is known of a JAX device, or None (CPU)."""
    return next((chip for chip in CHIPS if chip.kind in device.device_kind), None)
