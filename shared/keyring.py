"""The master key: a file beside the database, never in it. Old keys stay readable until they are removed."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken

from shared.errors import TrainyardError
from shared.log import logger

LOG = logger("keyring")


def key_error(key_id: str | None, file: Path, en: str, zh: str) -> TrainyardError:
    """Return the 503 that names the key and the file."""
    named_en = f" (key id {key_id})" if key_id else ""
    named_zh = f"（密钥编号 {key_id}）" if key_id else ""
    return TrainyardError(
        "master_key_unusable",
        503,
        "Secrets cannot be used",
        "无法使用密钥",
        f"{en}{named_en}: {file}. Put back the file it was written with, or set the job's secrets anew.",
        f"{zh}{named_zh}：{file}。请恢复原来的密钥文件，或重新设置任务的密钥。",
    )


@dataclass(frozen=True, slots=True)
class Keyring:
    """Keys by id; the first of the file encrypts, all of them decrypt."""

    file: Path
    keys: dict[str, Fernet] = field(default_factory=dict)
    current: str | None = None
    fault: str | None = None
    _raw: bytes = b""

    @staticmethod
    def load(file: Path) -> Keyring:
        """Read the keys, one a line; make the file (mode 0600) where there is none.

        A file that cannot be read or holds no key gives a ring with a `fault`: jobs without secrets still work.
        """
        try:
            if not file.exists():
                _create(file)
            lines = [line.strip() for line in file.read_text().splitlines() if line.strip()]
            keys = {key_id(line): Fernet(line.encode()) for line in lines}
        except (OSError, ValueError) as error:
            LOG.error("master_key_unusable", file=str(file), error=type(error).__name__)
            return Keyring(file, fault=type(error).__name__, _raw=os.urandom(32))
        if not keys:
            LOG.error("master_key_unusable", file=str(file), error="empty")
            return Keyring(file, fault="empty", _raw=os.urandom(32))
        return Keyring(file, keys, next(iter(keys)), None, lines[0].encode())

    def encrypt(self, job: str, name: str, value: str) -> tuple[str, str]:
        """Return (key id, ciphertext); job and name are inside, so that no row can pose as another.

        Raises TrainyardError 503 `master_key_unusable`.
        """
        if self.current is None:
            raise key_error(
                None, self.file, "The master key file cannot be used", "主密钥文件不可用"
            )
        plain = json.dumps([job, name, value]).encode()
        return self.current, self.keys[self.current].encrypt(plain).decode()

    def decrypt(self, key_id: str, ciphertext: str, job: str, name: str) -> str:
        """Return the value. Raises TrainyardError 503 naming the key id when the key is lost or wrong."""
        key = self.keys.get(key_id)
        if key is None:
            raise key_error(
                key_id,
                self.file,
                "The master key of a secret is not there",
                "找不到加密所用的主密钥",
            )
        try:
            owner, called, value = json.loads(key.decrypt(ciphertext.encode()))
        except (InvalidToken, ValueError):
            owner, called, value = "", "", ""
        if (owner, called) != (job, name):
            raise key_error(
                key_id, self.file, "The master key does not fit a secret", "主密钥无法解密"
            )
        return str(value)

    def derive(self, purpose: str) -> bytes:
        """Return a key for signing, which tells nothing of the master key."""
        return hmac.digest(self._raw, purpose.encode(), hashlib.sha256)


def key_id(line: str) -> str:
    """Return the id of a key, which tells nothing of it."""
    return hashlib.sha256(b"trainyard key id\0" + line.encode()).hexdigest()[:12]


def _create(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(descriptor, Fernet.generate_key() + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    try:
        # link, not rename: of two services starting at once the first one's key stays.
        os.link(temporary, file)
    except FileExistsError:
        LOG.info("master_key_there_already", file=str(file))
    finally:
        temporary.unlink()
