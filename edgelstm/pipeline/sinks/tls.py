"""The trust of a client, and its certificate."""

from __future__ import annotations

import ssl

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline.sinks.target import Options


def tls(options: Options, name: str) -> ssl.SSLContext:
    """Of the system, or of the file ``ca``. Raises EdgeLstmError when a file can't be read."""
    if options.key is not None and options.cert is None:
        raise EdgeLstmError(f"TLS for {name}", found="key without cert", expected="both")
    try:
        context = ssl.create_default_context(cafile=options.ca)
        if options.cert is not None:
            context.load_cert_chain(options.cert, options.key)
    except OSError as error:  # ssl.SSLError is one
        raise EdgeLstmError(
            f"TLS for {name}",
            found=error.strerror or str(error),
            expected="PEM files in `ca`, and in `cert` with `key`",
        ) from error
    return context
