"""The allowed fonts, and their typefaces.

Only the packages in ``PACKAGES`` are read, whatever else is installed. The list is the licence
check, because each entry was verified in the package's Debian copyright file. It also makes builds
reproducible on different machines.
"""

from __future__ import annotations

import functools
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from fontTools.ttLib import TTCollection, TTFont, TTLibError

OFL, APACHE, VERA = "OFL-1.1", "Apache-2.0", "Bitstream-Vera"

# Debian packages by licence. Packages with mixed licences, or only with other licences, are
# excluded (for example fonts-bpg-georgian, fonts-opendyslexic, fonts-sawarabi-gothic).
_BY_LICENCE = {
    OFL: """
        adobe-sourcesans3 anonymous-pro bebas-neue cabin cabinsketch cherrybomb cmu comfortaa
        comic-neue courier-prime crosextra-carlito dancingscript dosis dotgothic16 ebgaramond
        elstob eurofurence firacode gfs-artemisia gfs-baskerville gfs-bodoni-classic gfs-complutum
        gfs-didot gfs-didot-classic gfs-gazis gfs-neohellenic gfs-olga gfs-porson gfs-solomos
        gfs-theokritos hosny-amiri humor-sans junction junicode karla kaushanscript klee kristi
        lato league-mono league-spartan leckerli-one liberation lobster lobstertwo lohit-deva
        lxgw-wenkai manrope mononoki montserrat mplus nanum nanum-extra noto-cjk noto-core
        noto-mono opendin pretendard quattrocento quicksand rampart reggae rocknroll sil-andika
        sil-annapurna sil-charis sil-doulos sil-galatia sil-gentium sil-gentiumplus sora stick
        stix train vollkorn yanone-kaffeesatz yozvox-yozfont-antique yozvox-yozfont-cute
        yozvox-yozfont-edu yrsa-rasa yusei-magic
    """,
    APACHE: "droid-fallback motoya-l-cedar motoya-l-maruberi open-sans roboto-slab roboto-unhinted",
    VERA: "dejavu-core dejavu-extra dejavu-mono",
}
PACKAGES: dict[str, str] = {
    f"fonts-{name}": licence for licence, names in _BY_LICENCE.items() for name in names.split()
}

# Families that share their letter shapes under several names count as one typeface.
_RELATED = (
    (r"^(LXGW WenKai|Klee)", "Klee"),
    (r"^YOz", "YOz"),
    (r"^(M PLUS|Mplus)", "M PLUS"),
    (r"^(Noto Sans (Mono )?CJK|Pretendard|Source Sans)", "Source Sans"),
    (r"^Noto Serif CJK", "Noto Serif CJK"),
    (r"^Noto Sans Devanagari", "Noto Sans Devanagari"),
    (r"^Noto (Sans|Serif)( Display| Mono)?$", r"Noto \1"),
    (r"^(Noto Mono|Droid Sans|Open Sans)", "Noto Sans"),
    (r"^DejaVu Sans", "DejaVu Sans"),
    (r"^(Carlito|Lato)", "Lato"),
    (r"^(CMU \w+).*", r"\1"),
    (r"^(Charis|Doulos|Annapurna)", "SIL"),
    (r"^Nanum(Barun)?Gothic", "NanumGothic"),
    (r"^(eurofurence|unifur)", "eurofurence"),
    (r"^NanumMyeongjo", "NanumMyeongjo"),
    (
        r"^(NanumSquare|Gentium|STIX|Roboto Slab|Cabin|Lobster|Quicksand|Courier Prime|Anonymous)",
        r"\1",
    ),
    (r"^Roboto", "Roboto"),
)
_STRIP = re.compile(r"\b(Condensed|Narrow|Display|Alternates|Subrayada|Book|Compact|UI)\b")


@dataclass(frozen=True)
class Face:
    """One style of one family: a file, with an index for a collection."""

    package: str
    typeface: str
    path: Path
    index: int
    characters: frozenset[int]

    @property
    def key(self) -> str:
        """A name without a folder, which sorts the same on every machine."""
        return f"{self.typeface}/{self.path.name}#{self.index}"


def typeface(family: str) -> str:
    """Return the design of a family, so that no design is in two splits."""
    for pattern, name in _RELATED:
        match = re.match(pattern, family)
        if match:
            return match.expand(name).strip()
    return re.sub(r"\s+", " ", _STRIP.sub("", family)).strip()


def version(package: str) -> str:
    """Return the installed version of a Debian package; an empty string if it is missing."""
    command = ["dpkg-query", "-W", "-f", "${Version}", package]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


@functools.cache
def faces() -> tuple[Face, ...]:
    """Return all faces of the allowed packages, in a fixed order."""
    faces = [
        face for package in PACKAGES for path in _files(package) for face in _read(package, path)
    ]
    return tuple(sorted(faces, key=lambda face: face.key))


def covering(characters: str) -> list[Face]:
    """Return the upright faces that contain all of these characters."""
    wanted = {ord(character) for character in characters}
    return [face for face in faces() if wanted <= face.characters]


def _files(package: str) -> list[Path]:
    listing = subprocess.run(["dpkg", "-L", package], capture_output=True, text=True, check=False)
    if listing.returncode:
        msg = f"font package {package} is not installed: apt-get install {package}"
        raise FileNotFoundError(msg)
    paths = [Path(line) for line in listing.stdout.splitlines()]
    return [path for path in paths if path.suffix.lower() in {".ttf", ".otf", ".ttc"}]


def _read(package: str, path: Path) -> list[Face]:
    try:
        fonts = (
            TTCollection(path, lazy=True).fonts
            if path.suffix == ".ttc"
            else [TTFont(path, lazy=True)]
        )
    except TTLibError:
        return []
    # Regional variants in one collection have the same kana, so only the first is used.
    return [_face(package, path, index, font) for index, font in enumerate(fonts[:1])]


def _face(package: str, path: Path, index: int, font: TTFont) -> Face:
    names = font["name"]
    family = names.getDebugName(16) or names.getDebugName(1) or path.stem
    return Face(package, typeface(family), path, index, frozenset(font.getBestCmap() or {}))


if __name__ == "__main__":
    print(" ".join(PACKAGES))
