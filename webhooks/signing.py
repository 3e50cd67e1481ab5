"""Signatures by Standard Webhooks (https://www.standardwebhooks.com), as OpenAI's clients verify them."""

import base64
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime

from standardwebhooks import Webhook

PREFIX = "whsec_"
SECRET_BYTES = 32


def new_secret() -> str:
    return PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def hint_of(secret: str) -> str:
    """What of a secret may be shown: enough to tell it from another."""
    return f"{PREFIX}…{secret[-5:]}"


def signed_headers(message_id: str, body: str, signing: Sequence[str]) -> dict[str, str]:
    """The headers that prove a message: one signature for each secret that is valid now."""
    now = datetime.now(UTC)
    signatures = [Webhook(secret).sign(message_id, now, body) for secret in signing]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(signatures),
    }
