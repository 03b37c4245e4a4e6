"""Reads from S3 for less than half of the CPU time that they take through the whole client, which is most of what a small read costs.

The client's layers are passed by, not its settings: credentials, endpoint, TLS, proxies and time-outs are those of the s3fs client. Nothing
is tried twice or explained here: what does not come at once is left to s3fs, which tries again, follows redirects and says why.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import fsspec.asyn

CONNECTIONS = 64  # at a time; with the client's default of 10, 64 small reads take 7 round trips instead of one
_REFUSALS = (301, 307, 400, 403)
_roots: dict[tuple[str, str], str] = {}  # (endpoint, bucket) -> URL of the bucket; empty where the server wants what only s3fs can


def read_parts(fs: Any, paths: Sequence[str], starts: Sequence[int | None], ends: Sequence[int | None]) -> list[bytes | None]:
    """`path[start:end]` of each object, None for those that did not come.

    Args:
        fs: an `s3fs.S3FileSystem`.
        paths: bucket/key.
        starts, ends: None where the whole object is wanted.
    """
    try:
        return fsspec.asyn.sync(fs.loop, _read_parts, fs, paths, starts, ends)
    except Exception:  # no credentials, another release of the client; s3fs says what is wrong, if it is
        return [None] * len(paths)


async def _read_parts(fs: Any, paths: Sequence[str], starts: Sequence[int | None], ends: Sequence[int | None]) -> list[bytes | None]:
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest

    client = await fs.set_session()
    http = client._endpoint.http_session
    credentials = await (await fs.session.get_credentials()).get_frozen_credentials()
    signer = S3SigV4Auth(credentials, "s3", client.meta.region_name)
    endpoint = client.meta.endpoint_url
    for bucket in {path.partition("/")[0] for path in paths}:
        if (endpoint, bucket) not in _roots:
            url = await client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "k"})
            _roots[endpoint, bucket] = url.partition("?")[0].removesuffix("k")
    free = asyncio.Semaphore(CONNECTIONS)

    async def read(path: str, start: int | None, end: int | None) -> bytes | None:
        bucket, _, key = path.partition("/")
        root = _roots[endpoint, bucket]
        if not root:
            return None
        async with free:  # signed when its turn comes: a signature ages
            try:
                request = AWSRequest("GET", root + quote(key, safe="/~"))
                if start is not None and end is not None:
                    request.headers["Range"] = f"bytes={start}-{end - 1}"
                signer.add_auth(request)
                reply = await http.send(request.prepare())
                if reply.status_code in _REFUSALS:
                    _roots[endpoint, bucket] = ""
                return await reply.content if reply.status_code == (200 if start is None else 206) else None
            except Exception:
                return None

    return await asyncio.gather(*map(read, paths, starts, ends))
