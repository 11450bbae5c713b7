"""PNG, JPEG and TIFF: modes, orientation tags, bombs, damage, names."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from tests.attack.case import Case, Judge, Outcome, Trained, accepted, either, told

KIND = "pictures"


def grey() -> NDArray[np.uint8]:
    """(96, 80) a head in the brain window, asymmetric in both directions."""
    y, x = np.mgrid[-1 : 1 : 96 * 1j, -1 : 1 : 80 * 1j]
    out = np.where(np.hypot(x / 0.8, y / 0.9) < 1, 110.0, 0.0)
    out[np.hypot(x - 0.3, y + 0.3) < 0.2] = 220
    out += np.random.default_rng(0).normal(0, 5, out.shape)
    return np.clip(out, 0, 255).astype(np.uint8)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int) -> bytes:
    """A PNG that says it is so large; its data end early."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def pixels(expected: NDArray[Any] | None = None, tolerance: float = 1.0) -> Judge:
    """``index`` decoded the picture as an 8-bit grey image that is the expected one (default: :func:`grey`)."""

    def judge(got: Outcome) -> str:
        if got.status:
            return f"exit status {got.status}: {(got.err or got.out)[-300:]!r}"
        kept = np.load(got.folder / "pixels.npz")
        row = kept["array"][[place for place, path in enumerate(kept["path"]) if "odd" in path]]
        if len(row) != 1:
            return f"decoded {len(row)} times"
        wanted = grey() if expected is None else expected
        inside = np.array(Image.fromarray(row[0]).crop(_box(row.shape[-1], wanted.shape)))
        error = float(np.abs(inside.astype(float) - wanted).mean())
        return "" if error <= tolerance else f"grey levels off by {error:.1f} on average"

    return judge


def _box(side: int, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    top, left = (side - shape[0]) // 2, (side - shape[1]) // 2
    return left, top, left + shape[1], top + shape[0]


Make = Callable[[Path], None]
SIDE = 96


def as_file(name: str, image: Image.Image, **options: Any) -> tuple[str, Make]:
    return name, lambda path: image.save(path, **options)


def raw(content: bytes) -> Make:
    return lambda path: path.write_bytes(content) and None


def _png(**options: Any) -> bytes:
    import io

    buffer = io.BytesIO()
    Image.fromarray(grey()).save(buffer, "PNG", **options)
    return buffer.getvalue()


def _exif(turn: int) -> Any:
    exif = Image.Exif()
    exif[0x0112] = turn
    return exif


def _several_pages(path: Path) -> None:
    first, second = Image.fromarray(grey()), Image.fromarray(grey()[::-1].copy())
    first.save(path, save_all=True, append_images=[second])


def _texts() -> Any:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("bomb", "x" * (2 << 20), zip=True)
    return texts


def _palette(image: Image.Image) -> Image.Image:
    return image.convert("RGB").quantize(256)


def modes() -> dict[str, tuple[str, Make, Judge]]:
    """File name, what writes it, the judge."""
    image = Image.fromarray(grey())
    deep = Image.fromarray(grey().astype(np.uint16) * 257)
    clear = np.dstack([grey()] * 3 + [np.where(grey() > 50, 255, 0).astype(np.uint8)])
    return {
        "grey PNG": (*as_file("odd.png", image), pixels()),
        "RGB PNG": (*as_file("odd.png", image.convert("RGB")), pixels()),
        "RGBA PNG": (*as_file("odd.png", image.convert("RGBA")), pixels()),
        "RGBA PNG, transparent": (
            *as_file("odd.png", Image.fromarray(clear)),
            either(pixels(tolerance=6), told("odd.png")),
        ),
        "grey and alpha PNG": (*as_file("odd.png", image.convert("LA")), pixels()),
        "palette PNG": (*as_file("odd.png", _palette(image)), pixels(tolerance=2)),
        "bilevel PNG": (
            *as_file("odd.png", image.convert("1")),
            either(pixels(np.asarray(image.convert("1").convert("L"))), told("odd.png")),
        ),
        "16-bit PNG": (*as_file("odd.png", deep), either(pixels(), told("16"))),
        "grey TIFF": (*as_file("odd.tif", image), pixels()),
        "WhiteIsZero TIFF": (*as_file("odd.tif", Image.fromarray(255 - grey()), tiffinfo={262: 0}), pixels()),
        "16-bit TIFF": (*as_file("odd.tif", deep), either(pixels(), told("16"))),
        "float TIFF": (*as_file("odd.tif", image.convert("F")), either(pixels(), told("odd.tif"))),
        "CMYK TIFF": (*as_file("odd.tif", image.convert("CMYK")), either(pixels(tolerance=2), told("odd.tif"))),
        "LZW TIFF": (*as_file("odd.tif", image, compression="tiff_lzw"), pixels()),
        "TIFF of two pages": ("odd.tif", _several_pages, told("odd.tif")),
        "animated GIF": ("odd.gif", _several_pages, told("odd.gif")),
        "JPEG": (*as_file("odd.jpg", image, quality=98), pixels(tolerance=3)),
        "CMYK JPEG": (
            *as_file("odd.jpg", image.convert("CMYK"), quality=98),
            either(pixels(tolerance=4), told("odd.jpg")),
        ),
        "JPEG with an orientation tag": (
            *as_file("odd.jpg", Image.fromarray(np.rot90(grey()).copy()), quality=98, exif=_exif(6)),
            either(pixels(tolerance=4), told("odd.jpg")),
        ),
        "JPEG that is named PNG": ("odd.png", lambda path: image.save(path, "JPEG", quality=98), pixels(tolerance=3)),
        "PNG that is named JPEG": ("odd.jpg", lambda path: image.save(path, "PNG"), pixels()),
        "upper case": (*as_file("odd.PNG", image), pixels()),
        "PNG with a long text": (*as_file("odd.png", image, pnginfo=_texts()), either(pixels(), told("odd.png"))),
        "PNG cut in its middle": ("odd.png", raw(_png()[: len(_png()) // 2]), told("odd.png")),
        "PNG cut in its header": ("odd.png", raw(_png()[:20]), told("odd.png")),
        "PNG with a flipped byte": (
            "odd.png",
            raw(_png()[:500] + bytes([_png()[500] ^ 255]) + _png()[501:]),
            told("odd.png"),
        ),
        "empty": ("odd.png", raw(b""), told("odd.png")),
        "text": ("odd.png", raw(b"no picture"), told("odd.png")),
        "a web page": ("odd.png", raw(b"<!DOCTYPE html><html>404</html>"), told("odd.png")),
        "a PNG that says 65000 x 65000": ("odd.png", raw(png_of(65000, 65000)), told("odd.png")),
        "a PNG of no width": ("odd.png", raw(png_of(0, 96)), told("odd.png")),
        "one pixel": (*as_file("odd.png", Image.new("L", (1, 1), 9)), told("odd.png")),
        "one row": (*as_file("odd.png", Image.new("L", (500, 1), 9)), told("odd.png")),
        "black": (*as_file("odd.png", Image.new("L", (80, 96), 0)), told("odd.png")),
        "colour": (
            *as_file("odd.png", Image.merge("RGB", [image, image.rotate(90).resize(image.size), image])),
            either(accepted(), told("odd.png")),
        ),
    }


NAMES = {
    "line break": "odd\nname.png",
    "carriage return": "odd\rname.png",
    "escape sequence": "odd\x1b[31mred.png",
    "right to left": "odd\u202egnp.exe.png",
    "comma and quotes": 'odd,"a".png',
    "equals": "odd=1.png",
    "spaces": " odd  name .png",
    "dollar": "odd${oc.env:HOME}.png",
    "Japanese": "odd山田.png",
    "bytes that are no text": "odd\udcff.png",
    "200 characters": "odd" + "a" * 193 + ".png",
    "markup": "odd<img src=x onerror=alert(1)>.png",
}


def cases() -> list[Case]:
    """``index`` of a table with the picture among good ones; ``predict`` of a folder with it."""
    found = []

    def rows(folder: Path, name: str, make: Make) -> None:
        root = folder / "in"
        root.mkdir()
        lines = ["path,patient_id,hemorrhage"]
        for place in range(6):
            Image.fromarray(np.roll(grey(), place, 0) // (place + 1)).save(root / f"good{place}.png")
            lines.append(f"good{place}.png,g{place},{place % 2}")
        make(root / name)
        if (root / name).exists():
            quoted = name.replace('"', '""')
            lines.append(f'"{quoted}",x,1')
        (root / "m.csv").write_text("\n".join(lines) + "\n", "utf-8", errors="surrogateescape")

    for case, (name, make, judge) in modes().items():

        def indexed(folder: Path, trained: Trained, name: str = name, make: Make = make) -> list[str]:
            rows(folder, name, make)
            return [
                "index",
                "data=table",
                f"data.manifest={folder / 'in/m.csv'}",
                f"data.image_size={SIDE}",
                "data.fit=letterbox",
                "task.labels=[hemorrhage]",
            ]

        def predicted(folder: Path, trained: Trained, name: str = name, make: Make = make) -> list[str]:
            rows(folder, name, make)
            (folder / "in/m.csv").unlink()
            return ["predict", f"run={trained.runs['pictures']}", f"input={folder / 'in'}", "out=out"]

        found.append(Case(KIND, f"{case}: index", indexed, judge, pixels=True))
        if judge.__qualname__.startswith("told"):
            found.append(Case(KIND, f"{case}: predict", predicted, judge))
    for case, name in NAMES.items():
        for command in ("index", "predict"):

            def named(folder: Path, trained: Trained, name: str = name, command: str = command) -> list[str]:
                rows(folder, name, lambda path: Image.fromarray(grey()).save(path))
                if command == "predict":
                    (folder / "in/m.csv").unlink()
                    return [
                        "predict",
                        f"run={trained.runs['pictures']}",
                        f"input={folder / 'in'}",
                        "out=out",
                        "page=true",
                    ]
                return [
                    "index",
                    "data=table",
                    f"data.manifest={folder / 'in/m.csv'}",
                    "task.labels=[hemorrhage]",
                    "out=out",
                ]

            judge = either(accepted(), told("odd|not UTF-8"))
            found.append(Case(KIND, f"file name with {case}: {command}", named, judge))
    return found
