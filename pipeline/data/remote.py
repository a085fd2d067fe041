"""Fetches one file of a URL whole, through fsspec, within a finite time; no message shows what a URL keeps secret."""

import threading
import time
from pathlib import Path
from typing import Any

import fsspec

from ..errors import DataError
from ..redaction import without_secrets

_ATTEMPTS = 3
_PAUSE_S = 1.0
_HOPELESS = (FileNotFoundError, PermissionError, ImportError, ValueError)  # not mended by asking again


def is_remote(location: str) -> bool:
    """Whether this is a URL and not a path."""
    return "://" in location and not location.startswith("file://")


def shown(location: str) -> str:
    """A path or URL as a message may name it."""
    return without_secrets(location) if is_remote(location) else location


def fetch(url: str, file: Path, timeout_s: float, most_bytes: int | None = None) -> None:
    """Writes what is at `url` to `file`. DataError where it cannot be had, or more than `most_bytes` come.

    timeout_s: longest time without a byte, of each of three attempts.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        draft = file.with_name(f"{file.name}.{attempt}")  # an attempt that was given up may yet write into its own
        try:
            _attempt(url, draft, timeout_s, most_bytes)
            draft.replace(file)
            return
        except DataError:
            raise
        except Exception as error:  # each file system raises its own; an ImportError names the package to install
            if isinstance(error, _HOPELESS) or attempt == _ATTEMPTS:
                raise DataError(f"{_refusal(url, error)}; correct the address or access") from error
            time.sleep(_PAUSE_S * attempt)
        finally:
            draft.unlink(missing_ok=True)


def size_of(url: str, timeout_s: float) -> int | None:
    """Bytes of what is at `url`, without fetching it; None where the server does not say. DataError as `fetch`."""
    try:
        filesystem, path = fsspec.core.url_to_fs(url, **_options(url, timeout_s))
        found: int | None = filesystem.size(path)
        return found
    except Exception as error:  # each file system raises its own
        raise DataError(f"{_refusal(url, error)}; correct the address or access") from error


def _refusal(url: str, error: Exception) -> str:
    shown = without_secrets(url)
    reason = str(error) if shown == url and str(error) else type(error).__name__  # others repeat the URL in their text
    return f"{shown}: cannot be fetched ({reason})"


def _attempt(url: str, file: Path, timeout_s: float, most_bytes: int | None) -> None:
    """By a thread of its own, which is left alone where it comes no further: nothing else ends every file system."""
    received, failures = fsspec.Callback(), list[Exception]()

    def work() -> None:
        try:
            filesystem, path = fsspec.core.url_to_fs(url, **_options(url, timeout_s))
            filesystem.get_file(path, str(file), callback=received)
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=work, name="fetch", daemon=True)
    thread.start()
    bytes_then, then = -1, time.monotonic()
    while thread.is_alive():
        thread.join(0.2)
        now = time.monotonic()
        if most_bytes is not None and received.value > most_bytes:
            raise DataError(f"{without_secrets(url)}: more than the {most_bytes} bytes that the index says; index anew")
        if received.value != bytes_then:
            bytes_then, then = received.value, now
        elif now - then > timeout_s:
            raise TimeoutError(f"no byte for {timeout_s:g} s")
    if failures:
        raise failures[0]


def _options(url: str, timeout_s: float) -> dict[str, Any]:
    """Without them aiohttp gives up after five minutes, however well it goes."""
    if not url.startswith(("http://", "https://")):
        return {}
    from aiohttp import ClientTimeout

    return {"timeout": ClientTimeout(total=None, connect=timeout_s, sock_read=timeout_s)}
