"""Name what a file is by its first bytes, if it is not an image that can be read."""

import re
from typing import NamedTuple


class Content(NamedTuple):
    """What a file is."""

    name: str
    """With an article, such as "a web page"; "" if unknown."""
    format: str = ""
    """The name by which Pillow knows it; "" if Pillow does not read it, or is not asked to."""


_BY_START: dict[bytes, Content] = {
    b"\xff\xd8\xff": Content("a JPEG", "JPEG"),
    b"\x89PNG\r\n\x1a\n": Content("a PNG", "PNG"),
    b"II*\0": Content("a TIFF", "TIFF"),
    b"MM\0*": Content("a TIFF", "TIFF"),
    b"II+\0": Content("a TIFF", "TIFF"),
    b"MM\0+": Content("a TIFF", "TIFF"),
    b"GIF8": Content("a GIF", "GIF"),
    b"%PDF": Content("a PDF"),
    b"%!PS": Content("a PostScript file"),
    b"8BPS": Content("a Photoshop file"),
    b"\0\0\0\x0cjP  ": Content("a JPEG 2000"),
    b"\xff\x4f\xff\x51": Content("a JPEG 2000"),
    b"\0\0\0\x0cJXL ": Content("a JPEG XL"),
    b"\xff\x0a": Content("a JPEG XL"),
    b"\x76\x2f\x31\x01": Content("an OpenEXR image"),
    b"#?RADIANCE": Content("a Radiance HDR image"),
    b"SIMPLE  =": Content("a FITS file"),
    b"FUJIFILMCCD-RAW": Content("a raw photo"),
    b"\0\0\1\0": Content("an icon"),
    b"PK\x03\x04": Content("a zip archive"),
    b"\x1f\x8b": Content("a gzip archive"),
    b"BZh": Content("a bzip2 archive"),
    b"\xfd7zXZ\0": Content("an xz archive"),
    b"7z\xbc\xaf\x27\x1c": Content("a 7z archive"),
    b"Rar!": Content("a rar archive"),
    b"\x28\xb5\x2f\xfd": Content("a zstd archive"),
    b"\x1aE\xdf\xa3": Content("a video (Matroska or WebM)"),
    b"\0\0\1\xba": Content("a video (MPEG)"),
    b"\0\0\1\xb3": Content("a video (MPEG)"),
    b"FLV\1": Content("a video (Flash)"),
    b"OggS": Content("a sound or video (Ogg)"),
    b"ID3": Content("a sound (MP3)"),
    b"fLaC": Content("a sound (FLAC)"),
    b"\x89HDF": Content("an HDF5 file"),
    b"\x93NUMPY": Content("a numpy array"),
    b"PAR1": Content("a Parquet file"),
    b"SQLite format 3": Content("a database (SQLite)"),
    b"\x7fELF": Content("a program"),
    b"Mac OS X        ": Content("a macOS resource file"),
    b"\0\5\x16\7": Content("a macOS resource file"),
    b"version https://git-lfs": Content("a git-lfs pointer (`git lfs pull` fetches the file)"),
}
_IN_RIFF = {
    b"WEBP": Content("a WebP", "WEBP"),
    b"AVI ": Content("a video (AVI)"),
    b"WAVE": Content("a sound (WAV)"),
}
_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"), Content("a HEIC photo", "HEIF")),
    **dict.fromkeys((b"avif", b"avis"), Content("an AVIF image", "AVIF")),
    b"crx ": Content("a raw photo"),
}
_DVC_FILE = re.compile(r"^outs:\s*\n\s*- (.*\n)*?.*\b(md5|hash|etag): ", re.MULTILINE)
_BINARY = re.compile(r"[^\t\n\f\r -\x7e\x85\xa0-\U0010ffff]")

_LOOKED_AT = 4096  # bytes


def content_of(data: bytes) -> Content:
    """Return what a file is, by its first bytes.

    >>> content_of(b"GIF89a").name, content_of(b"<html>404</html>").name, content_of(bytes(512)).name
    ('a GIF', 'a web page', 'nothing but zeros')
    """
    start = data[:_LOOKED_AT]
    for magic, content in _BY_START.items():
        if start.startswith(magic):
            return content
    if start.startswith(b"RIFF"):
        return _IN_RIFF.get(start[8:12], Content(""))
    if start[4:8] == b"ftyp":
        return _BRANDS.get(start[8:12], Content("a video (MP4 or QuickTime)"))
    if start[4:8] in (b"moov", b"mdat", b"wide"):
        return Content("a video (MP4 or QuickTime)")
    if start[257:262] == b"ustar":
        return Content("a tar archive")
    if start[128:132] == b"DICM":
        return Content("a DICOM file")
    if start.startswith(b"BM"):
        return Content("a BMP", "BMP")
    if re.match(rb"P[1-7fF]\s", start):
        return Content("a Netpbm image", "PPM")
    if start and not any(start) and not any(data):
        return Content("nothing but zeros")
    return _text_of(start)


def _text_of(start: bytes) -> Content:
    text = start.decode("utf-8-sig", errors="ignore" if len(start) == _LOOKED_AT else "replace")
    if not text.strip() or "\N{REPLACEMENT CHARACTER}" in text or _BINARY.search(text):
        return Content("")
    head = text.lstrip().lower()
    if "<svg" in head and head.startswith(("<svg", "<?xml", "<!doctype svg", "<!--")):
        return Content("an SVG drawing")
    if head.startswith(("<!doctype html", "<html", "<head", "<body")):
        return Content("a web page")
    if head.startswith("<?xml"):
        return Content("an XML text")
    if _DVC_FILE.search(text):
        return Content("a file of DVC (`dvc pull` fetches what it stands for)")
    if re.match(r"\{\s*\"|\[\s*[\[{\"]", head):
        return Content("a JSON text")
    return Content("a text")
