"""Takes the transparency out of pictures. Used by the readers of folders of pictures."""

from __future__ import annotations

from PIL import Image


def on_white(image: Image.Image) -> Image.Image:
    """The picture on white, if anything of it may be transparent; else the picture itself.

    Pillow alone would show the colour below transparent pixels, which nobody sees and which is often black.
    """
    if not image.has_transparency_data or _is_opaque(image):
        return image
    above = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", above.size, "white"), above).convert("RGB")


def _is_opaque(image: Image.Image) -> bool:
    """Whether it has transparency and uses none of it, as many RGBA pictures."""
    return "A" in image.getbands() and image.getchannel("A").getextrema()[0] == 255
