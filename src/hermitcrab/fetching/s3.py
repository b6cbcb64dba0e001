"""One object of an S3-compatible store, by boto3: its own configuration counts (`AWS_…` variables, profiles, `AWS_ENDPOINT_URL`).

Where there are no credentials at all it asks without, as for a public bucket.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from hermitcrab.digest import digest_json
from hermitcrab.errors import HermitcrabError, UsageError, needs
from hermitcrab.fetching import Broken, Mark
from hermitcrab.references import without_credentials

CHUNK = 1 << 18


class Bucket:
    def __init__(self, reference: str):
        self.uri, self.key = without_credentials(reference), digest_json(reference)
        self.bucket, _, self.name = reference.removeprefix("s3://").partition("/")
        if not reference.startswith("s3://") or not self.bucket or not self.name or "@" in self.bucket:
            raise UsageError(
                f"{self.uri}: expected s3://BUCKET/KEY; credentials and endpoint come from the environment (AWS_…)"
            )

    def look(self) -> Mark:
        found = self._asked("head_object")
        return Mark(found["ETag"], found["LastModified"].isoformat(), found["ContentLength"])

    @contextmanager
    def open(self, start: int, mark: Mark) -> Iterator[tuple[int, Iterator[bytes]]]:
        found = (
            self._asked("get_object", Range=f"bytes={start}-", IfMatch=mark.tag)
            if mark.size
            else self._asked("get_object")
        )
        with closing(found["Body"]) as body:
            yield start, self._chunks(body)

    def _chunks(self, body: Any) -> Iterator[bytes]:
        errors = needs("botocore.exceptions", "remote")
        try:
            yield from body.iter_chunks(CHUNK)
        except (errors.BotoCoreError, errors.HTTPClientError, OSError) as error:
            raise Broken(f"the connection broke off ({type(error).__name__})") from error

    def _asked(self, what: str, **more: Any) -> Any:
        errors = needs("botocore.exceptions", "remote")
        try:
            return getattr(self._client(), what)(Bucket=self.bucket, Key=self.name, **more)
        except errors.ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in ("412", "PreconditionFailed"):
                raise HermitcrabError(f"{self.uri}: changed while it was downloaded; run again") from error
            told = {"404": "there is no such object", "NoSuchKey": "there is no such object", "NoSuchBucket": "there is no such bucket",
                    "403": "the store does not give it to us", "AccessDenied": "the store does not give it to us"}  # fmt: skip
            raise HermitcrabError(f"{self.uri}: {told.get(code, f'the store answers {code}')}") from error
        except (errors.ConnectionError, errors.HTTPClientError) as error:
            raise Broken(f"the store cannot be reached ({type(error).__name__})") from error
        except (errors.BotoCoreError, ValueError) as error:
            raise HermitcrabError(f"{self.uri}: cannot be asked for: {' '.join(str(error).split())[:200]}") from error

    def _client(self) -> Any:
        boto3, config = needs("boto3", "remote"), needs("botocore.config", "remote")
        session = boto3.session.Session()
        more: dict[str, Any] = {"connect_timeout": 15, "read_timeout": 60, "retries": {"max_attempts": 2}}
        if session.get_credentials() is None:
            more["signature_version"] = needs("botocore", "remote").UNSIGNED
        region = session.region_name or "us-east-1"
        return session.client("s3", region_name=region, config=config.Config(**more))
