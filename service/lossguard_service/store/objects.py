"""Object storage by its URL: S3 and what speaks like it, Google Cloud Storage, Azure, or a folder of this machine.

All through `obstore`, which takes credentials and endpoints from each provider's usual environment (AWS_*, GOOGLE_*,
AZURE_*), instance metadata and web identities (docs/decisions/0406-bytes-in-objects.md). A request is tried three times
within `RETRY_SECONDS`; then the caller hears `BytesUnavailable`.
"""

import asyncio
import importlib.util
import os
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from lossguard_service.store.bytes import BytesLost, BytesUnavailable, Listed

REQUEST_SECONDS: Final = 20.0
RETRY_SECONDS: Final = 20.0
RETRIES: Final = 2
ENDPOINTS: Final = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")
"""Where the environment names an endpoint; plain http is allowed if it does so with http://."""
SCHEMES: Final = ("s3", "s3a", "gs", "az", "adl", "azure", "abfs", "abfss", "file")


class BytesUrlError(ValueError):
    """The URL names no object store that this service can use; nothing was opened."""


def open_objects(url: str) -> "ObstoreObjects":
    """The object store behind a URL: `s3://bucket/folder`, `gs://...`, `az://container/...`, `file:///folder`.

    Raises:
        BytesUrlError: with a sentence that says what to write or to install instead.
    """
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise BytesUrlError(
            f"{url!r} is no object store: use s3://bucket/folder, gs://bucket/folder, az://container/folder or "
            "file:///folder"
        )
    if parts.query or parts.fragment or parts.password:
        # Not repeated: it may hold a secret.
        raise BytesUrlError("write only scheme, bucket and folder: credentials come from the provider's environment")
    if importlib.util.find_spec("obstore") is None:
        raise BytesUrlError('object storage needs a package: pip install "lossguard[objects]"')
    if parts.scheme == "file":
        folder = Path(unquote(parts.path))
        if parts.netloc or not folder.is_absolute() or folder == Path("/"):
            raise BytesUrlError(f"{url!r} names no folder: write file:///absolute/folder")
        return ObstoreObjects(_folder(folder), folder)
    if not parts.netloc:
        raise BytesUrlError(f"{url!r} names no bucket: write {parts.scheme}://bucket/folder")
    return ObstoreObjects(_remote(url))


def _folder(folder: Path) -> Any:
    from obstore.store import LocalStore

    try:
        return LocalStore(folder, mkdir=True)
    except Exception as error:
        raise BytesUrlError(f"{folder} cannot be used: {error}") from None


def _remote(url: str) -> Any:
    from obstore.store import from_url

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    config = {"aws_endpoint": endpoint} if endpoint and urlsplit(url).scheme in ("s3", "s3a") else {}
    options: dict[str, Any] = {"timeout": f"{round(1000 * REQUEST_SECONDS)}ms", "connect_timeout": "3s"}
    if any(os.environ.get(name, "").startswith("http://") for name in ENDPOINTS):
        options["allow_http"] = True
    retries: Any = {
        "max_retries": RETRIES,
        "retry_timeout": timedelta(seconds=RETRY_SECONDS),
        "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2},
    }
    try:
        return from_url(url, config=config, client_options=options, retry_config=retries)  # type: ignore[call-overload]
    except Exception as error:
        raise BytesUrlError(f"the object store cannot be used: {error}") from None


class ObstoreObjects:
    """An `Objects` over obstore.

    Args:
        store: one of obstore's.
        folder: where it keeps its files if it is a folder of this machine: they are synced to disk.
    """

    def __init__(self, store: Any, folder: Path | None = None) -> None:
        self._store = store
        self._folder = folder

    @property
    def may_vanish(self) -> bool:
        """See `Objects`."""
        return self._folder is not None

    async def exists(self, key: str) -> bool:
        """See `Objects`."""
        import obstore
        from obstore.exceptions import BaseError, NotFoundError

        if self._folder is not None:
            return (self._folder / key).exists()
        try:
            await obstore.head_async(self._store, key)
        except (NotFoundError, FileNotFoundError):
            return False
        except (BaseError, OSError) as error:
            raise _unavailable("read", error) from error
        return True

    async def put(self, key: str, data: bytes) -> None:
        """See `Objects`."""
        import obstore
        from obstore.exceptions import BaseError

        try:
            await obstore.put_async(self._store, key, data)
            if self._folder is not None:
                await asyncio.to_thread(_sync, self._folder / key, self._folder)
        except (BaseError, OSError) as error:
            raise _unavailable("written", error) from error

    async def get(self, key: str, ranges: Sequence[tuple[int, int]] | None = None) -> list[bytes]:
        """See `Objects`."""
        import obstore
        from obstore.exceptions import BaseError, NotFoundError

        try:
            if ranges is None:
                return [bytes(await (await obstore.get_async(self._store, key)).bytes_async())]
            some = [one for one in ranges if one[1]]  # an empty one is an error to obstore
            starts, sizes = [start for start, _ in some], [size for _, size in some]
            found = await obstore.get_ranges_async(self._store, key, starts=starts, lengths=sizes) if some else []
        except (NotFoundError, FileNotFoundError):
            raise BytesLost(f"object {key} is gone from the object store: restore it there") from None
        except (BaseError, OSError) as error:
            raise _unavailable("read", error) from error
        parts = iter([bytes(part) for part in found])
        values = [next(parts) if size else b"" for _, size in ranges]
        if any(len(value) != size for value, (_, size) in zip(values, ranges, strict=True)):
            raise BytesLost(f"object {key} is shorter than what was written: restore it in the object store")
        return values

    async def delete(self, keys: Sequence[str]) -> None:
        """See `Objects`."""
        import obstore
        from obstore.exceptions import BaseError, NotFoundError

        try:
            await obstore.delete_async(self._store, list(keys))
        except (NotFoundError, FileNotFoundError):
            # A folder says so at the first one that is not there, and leaves the others.
            for key in keys if len(keys) > 1 else ():
                await self.delete([key])
        except (BaseError, OSError) as error:
            raise _unavailable("deleted", error) from error

    async def listed(self, prefix: str) -> AsyncIterator[list[Listed]]:
        """See `Objects`."""
        import obstore
        from obstore.exceptions import BaseError

        try:
            async for some in obstore.list(self._store, prefix, chunk_size=1000):
                yield [Listed(one["path"], one["size"], one["last_modified"].timestamp()) for one in some]
        except (BaseError, OSError) as error:
            raise _unavailable("listed", error) from error


def _unavailable(what: str, error: Exception) -> BytesUnavailable:
    # obstore's errors go on for pages with the whole request in them; the first line says what happened.
    said = str(error).strip().splitlines()
    return BytesUnavailable(f"nothing can be {what} in the object store: {said[0][:300] if said else error!r}")


def _sync(file: Path, root: Path) -> None:
    """Make a file and the folders that lead to it survive a power cut."""
    for path in (file, *(one for one in file.parents if one.is_relative_to(root))):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
