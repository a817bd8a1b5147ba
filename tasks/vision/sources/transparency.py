"""Takes the transparency out of pictures. Used by every reader of picture files."""

from __future__ import annotations

from PIL import Image


def on_white(image: Image.Image) -> Image.Image:
    """The picture on white, if anything of it may be transparent; else the picture itself.

    Pillow alone would show the colour below transparent pixels, which nobody sees and which is often black.
    """
    if not image.has_transparency_data:
        return image
    above = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", above.size, "white"), above).convert("RGB")
