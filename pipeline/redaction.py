"""What a message, a file or a page may show of an address: nothing that lets anybody in."""

import re

_SECRETS = r"[\w-]*(?:password|token|secret|signature)|passwd|pwd|sig"
"""Names of query parameters."""


def redacted(text: str) -> str:
    """`text` without the user name and password of any address in it, nor the secrets of its query."""
    text = re.sub(r"""://[^\s"']*@""", "://***@", text)
    text = re.sub(r""":/[^\s"'/:@]+:[^\s"'@]+@""", ":/***@", text)  # of one that was taken for a file's name
    return re.sub(rf"""(?i)\b((?:{_SECRETS})=)[^&\s"']+""", r"\1***", text)


def without_secrets(url: str) -> str:
    """The URL without user, password and query, where signatures and tokens are."""
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("?")[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
