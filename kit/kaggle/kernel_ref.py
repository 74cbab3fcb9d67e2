"""Name a Kaggle kernel by owner, slug and version. Use `KernelRef.parse` for what a user typed."""

import hashlib
import re
from dataclasses import dataclass

from kit.kaggle.errors import KaggleError

# Kaggle takes no shorter title, and so no shorter slug.
_SHORTEST_SLUG = 5


@dataclass(frozen=True)
class KernelRef:
    """A kernel as owner/slug, with the version number where one is meant."""

    owner: str
    slug: str
    version: int | None = None

    @classmethod
    def parse(cls, text: str, owner: str = "") -> "KernelRef":
        """Parse owner/slug, owner/slug/version, a kernel's address, or with `owner` a bare slug.

        Raises:
            KaggleError: the text is none of these, or an address with a scriptVersionId only.
        """
        if not text.strip():
            # `kit kernels wait $(kit kernels push …)` passes "" on where the push failed.
            raise KaggleError(
                "the name of the kernel is empty",
                "Check whether the push before this failed; `kit kernels status` lists kernels.",
            )

        address = re.sub(r"^https?://(www\.)?kaggle\.com/(code/)?", "", text.strip())
        name = address.split("?")[0].strip("/")
        match = re.fullmatch(r"(?:([\w-]+)/)?([\w-]+)(?:/v?(\d+))?", name)
        if match and len(match[2]) < _SHORTEST_SLUG:
            raise KaggleError(
                f"{text[:60]!r} cannot name a kernel: {match[2]!r} is shorter than"
                f" {_SHORTEST_SLUG} characters",
                "Write OWNER/SLUG as in the kernel's address; `kit kernels list` shows yours.",
            )
        if not match or not (match[1] or owner) or match[3] == "0":
            raise KaggleError(
                f"{text[:60]!r} is not the name of a kernel",
                "Write OWNER/SLUG or OWNER/SLUG/VERSION, as in its address.",
            )

        # No call of the API takes a scriptVersionId. Ignoring it would silently mean the latest
        # version, which may be another one than the user looked at.
        if "scriptVersionId=" in text and not match[3]:
            raise KaggleError(
                f"{text.strip()[:100]!r} names a version by scriptVersionId, which cannot be"
                " looked up",
                f"Write {match[1] or owner}/{match[2]}/VERSION, with the version number from the"
                " kernel's page.",
            )
        return cls(match[1] or owner, match[2], int(match[3]) if match[3] else None)

    def __str__(self) -> str:
        return f"{self.owner}/{self.slug}" + (f"/{self.version}" if self.version else "")

    @property
    def name(self) -> str:
        """owner/slug, as Kaggle names a source to mount."""
        return f"{self.owner}/{self.slug}"

    @property
    def url(self) -> str:
        """The address of the kernel's page."""
        return f"https://www.kaggle.com/code/{self.name}"

    def request(self) -> dict[str, str]:
        """Return the fields that name this kernel in a request."""
        label = {"versionLabel": f"v{self.version}"} if self.version else {}
        return {"userName": self.owner, "kernelSlug": self.slug, **label}


def shorten_to_slug(name: str, limit: int) -> str:
    """Return a name as letters, digits and single hyphens, at most `limit` characters long.

    Different names stay different, also where Kaggle writes them in lower case: a name that does
    not fit gets four hex digits of its hash in place of its middle. The eight digits that a run's
    name ends with stay.
    """
    slug = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")
    if slug.lower() == name and len(slug) <= limit:
        return slug

    digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:4]
    start, recipe_hash = slug, ""
    if match := re.fullmatch(r"(.*?)-?([0-9a-f]{8})", slug):
        start, recipe_hash = match.groups()
    end = "-".join(filter(None, (digest, recipe_hash)))
    start = start[: limit - len(end) - 1].strip("-")
    return "-".join(filter(None, (start, end)))
