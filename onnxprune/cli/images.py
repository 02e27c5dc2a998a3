"""--image-size, --image-mean, --image-std, --image-layout: how image files become inputs."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli.options import F

if TYPE_CHECKING:
    from onnxprune.repair.images import Images


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """N, or HEIGHTxWIDTH."""
    if value is None:
        return None
    found = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", value)
    if found is None:
        raise click.BadParameter(f"'{value}' is not N or HEIGHTxWIDTH, as in 224", ctx, param)
    return int(found[1]), int(found[2] or found[1])


def _numbers(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[float, ...] | None:
    """One number, or one per colour: 0.485,0.456,0.406."""
    if value is None:
        return None
    try:
        numbers = tuple(float(n) for n in value.replace(",", " ").split())
    except ValueError:
        numbers = ()
    if len(numbers) not in (1, 3):
        wanted = "one number or three, as in 0.485,0.456,0.406"
        raise click.BadParameter(f"'{value}' is not {wanted}", ctx, param)
    return numbers


_OPTIONS = (
    click.option("--image-size", metavar="N|HxW", callback=_size,
                 help="Size of images in --calib.  [default: the model's]"),
    click.option("--image-mean", metavar="R,G,B", callback=_numbers,
                 help="Taken off pixels from 0 to 1.  [default: 0]"),
    click.option("--image-std", metavar="R,G,B", callback=_numbers,
                 help="What pixels are then divided by.  [default: 1]"),
    click.option("--image-layout", type=click.Choice(["nchw", "nhwc"]),
                 help="Where the colours are.  [default: by the input's shape]"),
)  # fmt: skip


def image_options(command: F) -> F:
    """The four options; the command gets them as `images`, None where none was given."""

    @functools.wraps(command)
    def with_images(
        *args: Any, image_size: Any, image_mean: Any, image_std: Any, image_layout: Any, **how: Any
    ) -> Any:
        given = (image_size, image_mean, image_std, image_layout)
        return command(*args, images=_images(*given) if any(given) else None, **how)

    found: Any = with_images
    for option in reversed(_OPTIONS):
        found = option(found)
    return found  # type: ignore[no-any-return]


def _images(size: Any, mean: Any, std: Any, layout: Any) -> Images:
    from onnxprune.repair.images import Images

    return Images(size, mean, std, layout)
