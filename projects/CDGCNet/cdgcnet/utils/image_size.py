"""The size at which an image enters a network."""


def shortest_edge_size(size: tuple[int, int], min_size: int, max_size: int) -> tuple[int, int]:
    """The size of an image whose shorter edge becomes ``min_size``, rounded as Detectron2 does.

    Args:
        size: (H, W) of the image.
        min_size: shorter edge in pixels; 0 keeps the size.
        max_size: limit of the longer edge in pixels, which takes precedence.

    Returns:
        (h, w), at least one pixel each.
    """
    height, width = float(size[0]), float(size[1])
    if min_size:
        # The shorter edge is exact: height * (min_size / height) may fall short of min_size.
        scale = min_size / min(size)
        if height < width:
            height, width = float(min_size), width * scale
        else:
            height, width = height * scale, float(min_size)
    scale = min(1.0, max_size / max(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
