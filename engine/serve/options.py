"""Options of the server, and the refusal of an address that other machines can reach without a key."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import HeadraceError, first_line

LARGEST_BODY_MB = 8  # about two million tokens of text


@dataclass(frozen=True)
class ServeOptions:
    """How the server is reached, and what one request may take.

    `parallel` requests compute at once and `queue` more wait. `max_tokens`, `temperature`, `top_p`, `top_k` and `min_p`
    apply to requests that do not set them. `context` lowers the model's own limit, in tokens. `grace_s` is the time that a
    signal leaves for running requests.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    api_key: str | None = None
    name: str | None = None
    cors: tuple[str, ...] = ()
    parallel: int = 1
    queue: int = 16
    context: int | None = None
    max_tokens: int = 2048
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_body_mb: float = LARGEST_BODY_MB
    grace_s: float = 30.0
    prompt_cache_gb: float = 1.0
    prompt_cache_dir: Path | None = None
    prompt_cache_disk_gb: float = 10.0
    chat_template_args: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, low, high in (
            ("port", 0, 65535), ("parallel", 1, 64), ("queue", 0, 100_000), ("context", 1, 1 << 40),
            ("max_tokens", 1, 1 << 40), ("temperature", 0, 100), ("top_p", 0, 1), ("top_k", 0, 1 << 40),
            ("min_p", 0, 1), ("max_body_mb", 0.001, 4096),
            ("grace_s", 0, 86_400), ("prompt_cache_gb", 0, 1e6), ("prompt_cache_disk_gb", 0, 1e6),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                option = name.removesuffix("_s").replace("_", "-")
                raise HeadraceError(f"--{option} {value:g} is outside {low:g} .. {high:g}; give a value in this range")
        key = self.api_key
        if key is not None and not (key.strip() and key.isascii() and key.isprintable()):
            raise HeadraceError("--api-key is empty or has characters that a header cannot have; give printable ASCII")

    def address(self) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
        """The family and the address to listen at.

        Raises `HeadraceError` for an unknown host, and for an address that other machines can reach while there is no key.
        """
        try:
            found = socket.getaddrinfo(self.host or None, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (OSError, UnicodeError) as e:
            raise HeadraceError(f"--host {self.host} is unknown ({first_line(e)}); 127.0.0.1 is usual") from e
        family, _, _, _, address = found[0]
        if not self.api_key and not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
            host = self.host or "(empty)"
            raise HeadraceError(f"--host {host} is open to other machines; give --api-key KEY, or keep --host 127.0.0.1")
        return family, address


def short_name(folder: Path) -> str:
    """The name that clients use for a checkpoint's folder: its own, or that of its repository in the hub's cache.

    A folder called `checkpoint` takes the name of the folder above it.
    """
    folder = folder.resolve()
    for parent in (folder, *folder.parents):
        if parent.name.startswith("models--"):
            return parent.name.split("--")[-1]
    return folder.parent.name if folder.name == "checkpoint" and folder.parent.name else folder.name or "model"
