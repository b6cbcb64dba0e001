"""docker: Dockerfile, compose.yaml, requirements.txt and .dockerignore that run `crab serve`.

The image holds the program alone. The package is mounted, read-only, so one image serves every package, and nothing of a
package (or of a key) is in a layer. Whatever a package calls itself, the Dockerfile is the same.
"""

from __future__ import annotations

import functools
import re
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from typing import TYPE_CHECKING, Any

from hermitcrab.deploy import Made
from hermitcrab.deploy.serving import (
    DRAIN,
    KEY_FILE,
    KEY_FOLDER,
    KEY_VARIABLE,
    LIVE,
    MODEL_FOLDER,
    PORT,
    USER,
    about,
    as_yaml,
    command,
    image_of,
    memory,
    slug,
)
from hermitcrab.errors import UsageError
from hermitcrab.packaged import Packaged

if TYPE_CHECKING:
    from hermitcrab.deploy import Options

# Releases of the official image that are known to be there, by the Python whose versions requirements.txt pins.
BASE = {
    (3, 11): "python:3.11.14-slim-bookworm",
    (3, 12): "python:3.12.12-slim-bookworm",
    (3, 13): "python:3.13.9-slim-bookworm",
}
EXTRA = "serve"
MODEL_VARIABLE = "CRAB_MODEL"

DOCKERFILE = """\
# crab serve. The model is not in this image: mount a package read-only at {model}.
# The wheel of hermitcrab {version} must lie beside this file.
FROM {base}

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 HF_HUB_OFFLINE=1 \\
    HOME=/tmp XDG_CACHE_HOME=/tmp/cache NUMBA_CACHE_DIR=/tmp/numba

COPY requirements.txt /opt/requirements.txt
RUN pip install --no-cache-dir --requirement /opt/requirements.txt
COPY {wheel} /opt/
RUN pip install --no-cache-dir --no-deps /opt/{wheel}

WORKDIR /tmp
USER {user}:{user}
EXPOSE {port}
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=10s --start-period=120s --retries=3 \\
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:{port}{live}', timeout=8)"]
ENTRYPOINT ["crab"]
CMD ["serve", "{model}", "--host", "0.0.0.0", "--port", "{port}", "--api-key", "env:{key}"]
"""

IGNORED = """\
# Nothing goes to the builder but what the Dockerfile copies: no model, no key.
*
!requirements.txt
!{wheel}
"""


def make(package: Packaged, options: Options) -> Made:
    """The four files.

    Raises:
        UsageError: no image for this Python, a part of the server that is not installed here, or no weights.
    """
    base = BASE.get(sys.version_info[:2])
    if base is None:
        known = ", ".join(f"{major}.{minor}" for major, minor in BASE)
        raise UsageError(f"--to docker: expected Python {known}. Received: {sys.version_info[0]}.{sys.version_info[1]}")
    here = version("hermitcrab")
    wheel = f"hermitcrab-{here}-py3-none-any.whl"
    dockerfile = DOCKERFILE.format(base=base, version=here, wheel=wheel, user=USER, port=PORT, live=LIVE, model=MODEL_FOLDER,
                                   key=KEY_VARIABLE)  # fmt: skip
    files = {
        "Dockerfile": dockerfile.encode(),
        "compose.yaml": as_yaml(compose(package, options)),
        "requirements.txt": "".join(f"{line}\n" for line in pinned("hermitcrab", EXTRA)).encode(),
        ".dockerignore": IGNORED.format(wheel=wheel).encode(),
    }
    notes = [
        f"put {wheel} beside the Dockerfile (`python -m build --wheel --outdir FOLDER` in hermitcrab's source)",
        f"start: {MODEL_VARIABLE}=/path/of/the/package {KEY_VARIABLE}=… docker compose up --build",
    ]
    if options.signer is not None:
        files[KEY_FILE] = options.signer
    return Made(files, notes=tuple(notes))


def compose(package: Packaged, options: Options) -> dict[str, Any]:
    """compose.yaml as a value. Compose puts variables where it sees `$`, so what a package says is doubled there."""
    mounts = [_mount(f"${{{MODEL_VARIABLE}:?the folder of the package}}", MODEL_FOLDER)]
    if options.signer is not None:
        mounts.append(_mount(f"./{KEY_FILE}", f"{KEY_FOLDER}/{KEY_FILE}"))
    service = {
        "build": {"context": ".", "dockerfile": "Dockerfile"},
        "image": image_of(options.image),
        "command": command(package, options.signer is not None),
        "user": f"{USER}:{USER}",
        "read_only": True,
        "tmpfs": ["/tmp:rw,nosuid,nodev,size=256m,mode=1777"],
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "environment": {KEY_VARIABLE: f"${{{KEY_VARIABLE}:?the key that clients must send}}"},
        "ports": [f"127.0.0.1:{PORT}:{PORT}"],
        "volumes": mounts,
        "labels": {name: value.replace("$", "$$") for name, value in about(package).items()},
        "deploy": {"resources": {"limits": {"memory": str(memory(package)), "pids": 512}}},
        "restart": "unless-stopped",
        "init": True,
        "stop_grace_period": f"{DRAIN}s",
    }
    return {"name": slug(package.name), "services": {"serve": service}}


def _mount(source: str, target: str) -> dict[str, Any]:
    return {"type": "bind", "source": source, "target": target, "read_only": True, "bind": {"create_host_path": False}}


@functools.cache
def pinned(distribution: str, extra: str) -> tuple[str, ...]:
    """`name==version` of all that a distribution with an extra leads to, as installed here, without itself.

    A requirement that is not installed is one of another system or Python, but for those of the extra itself.

    Raises:
        UsageError: a part of the extra is not installed.
    """
    found: dict[str, str] = {}
    waiting = [(distribution, frozenset([extra]))]
    seen = set(waiting)
    while waiting:
        name, extras = waiting.pop()
        for line in requires(name) or []:
            parts = re.match(r"([A-Za-z0-9._-]+)\s*(?:\[([^\]]*)\])?[^;]*(?:;(.*))?", line)
            wanted = re.findall(r"extra\s*==\s*['\"]([^'\"]+)['\"]", parts[3] or "") if parts else []
            if parts is None or (wanted and not extras & set(wanted)):
                continue
            needed = re.sub(r"[-_.]+", "-", parts[1]).lower()
            try:
                found[needed] = version(needed).partition("+")[0]  # a local build is on no index
            except PackageNotFoundError:
                if name == distribution and not re.search(r"sys_platform|platform_|python_version", parts[3] or ""):
                    raise UsageError(
                        f"--to docker: pins what runs here, and {needed} is not installed; run: pip install 'hermitcrab[{extra}]'"
                    ) from None
                continue
            step = (needed, frozenset(re.findall(r"[\w.-]+", parts[2] or "")))
            if step not in seen:
                seen.add(step)
                waiting.append(step)
    found.pop(distribution, None)
    return tuple(f"{name}=={found[name]}" for name in sorted(found))
