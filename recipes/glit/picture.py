"""How GLiT networks and runs are drawn (paper, figure 5): one box per block, darker for more local heads."""

from nasx import Arch
from nasx.report import BlockDrawing


def block_drawings(arch: Arch, num_heads: int) -> tuple[BlockDrawing, ...]:
    """Return one box per block, with its heads as title and its details below."""
    boxes = []
    for part in arch.parts("block"):
        heads = int(part["global_heads"])
        lines = []
        if "kernel_size" in part:
            lines += [f"K {part['kernel_size']}", f"E {part['expansion']}"]
        if "qkv_ratio" in part:
            lines.append(f"qkv ×{part['qkv_ratio']:g}")
        lines.append(f"MLP ×{part['mlp_ratio']:g}")
        boxes.append(BlockDrawing(f"G{heads} L{num_heads - heads}", (num_heads - heads) / num_heads, tuple(lines)))
    return tuple(boxes)
