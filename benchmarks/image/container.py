"""A container of a built image, without a container engine's daemon: namespaces, and the image's own configuration.

As `docker run --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges --network none` would have it:
the root is mounted read-only, /tmp is empty memory, there is no network but loopback, and no capability is left.
buildah fetches and mounts the image; util-linux and iproute2 do the rest. It takes root.
"""

import json
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

_PREPARE = """
set -e
mount --make-rprivate /
ip link set lo up
mount --bind "$0" "$0"
mount -o remount,bind,ro "$0"
mount -t proc proc "$0/proc"
mount -t sysfs -o ro sysfs "$0/sys"
mount -t tmpfs -o mode=755 tmpfs "$0/dev"
mkdir "$0/dev/shm"
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$0/dev/shm"
for device in null zero random urandom; do touch "$0/dev/$device"; mount --bind "/dev/$device" "$0/dev/$device"; done
mount -o remount,ro "$0/dev"
mount -t tmpfs -o mode=1777,nosuid,nodev,noexec tmpfs "$0/tmp"
exec chroot "$0" "$@"
"""


class ImageError(RuntimeError):
    """An image, or a container of it, is not as wanted."""


def outside(*command: str) -> str:
    """What a command of this machine prints. Raises ImageError."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ImageError(f"{shlex.join(command)}: exit status {done.returncode}\n{done.stderr.strip()}")
    return done.stdout.strip()


class Running:
    """A container whose first process runs."""

    def __init__(self, process: "subprocess.Popen[str]", image: "Image") -> None:
        self.process, self._image = process, image

    @property
    def first(self) -> psutil.Process:
        """Its process 1, seen from outside."""
        (found,) = psutil.Process(self.process.pid).children()
        return found

    def run(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """Runs a command inside, beside the first process, as the image's user."""
        entered = ("nsenter", "--target", str(self.first.pid), "--all", "--root")
        return subprocess.run(
            [*entered, *self._image.unprivileged(command)],
            env=self._image.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def beside(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """Runs a command of this machine in the container's network, as a caller of its server."""
        entered = ("nsenter", "--target", str(self.first.pid), "--net")
        return subprocess.run([*entered, *command], capture_output=True, text=True, check=False)


class Image:
    """An image that buildah knows, unpacked: its configuration, and the folder of its files."""

    def __init__(self, name: str, root: Path) -> None:
        self.name, self.root = name, root
        described = json.loads(outside("buildah", "inspect", "--type", "image", name))
        self.config: dict[str, Any] = described["Docker"]["config"]
        """As Docker's image format has it: the OCI's has no health check."""

    @property
    def environment(self) -> dict[str, str]:
        """The variables that it sets."""
        return dict(entry.split("=", 1) for entry in self.config["Env"])

    def unprivileged(self, command: Sequence[str]) -> list[str]:
        """A command as the image's user, whatever root's rights are outside."""
        user, _, group = self.config["User"].partition(":")
        rights = ("--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "--clear-groups")
        there = ("env", f"--chdir={self.config['WorkingDir'] or '/'}")
        return [*there, "setpriv", f"--reuid={user}", f"--regid={group or user}", *rights, "--", *command]

    @contextmanager
    def started(self, *command: str) -> Iterator[Running]:
        """Starts a container; `command` is its first process, by default the image's own."""
        wanted = command or [*(self.config["Entrypoint"] or ()), *(self.config["Cmd"] or ())]
        first = self.unprivileged(["sh", "-c", 'echo started; exec "$@"', "sh", *wanted])
        apart = ("unshare", "--net", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child")
        process = subprocess.Popen(
            [*apart, "sh", "-c", _PREPARE, str(self.root), *first],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        try:
            if (line := process.stdout.readline()) != "started\n":
                raise ImageError(f"{self.name} did not start: {line}{process.stdout.read()}")
            yield Running(process, self)
        finally:
            process.kill()  # and with it, --kill-child, its first process
            process.wait()
            process.stdout.close()


@contextmanager
def unpacked(name: str) -> Iterator[Image]:
    """An image by a name that `buildah from` takes, such as `skillguard:cpu` or `docker-daemon:skillguard:cpu`."""
    container = outside("buildah", "from", name)
    try:
        image = outside("buildah", "inspect", "--format", "{{.FromImage}}", container)
        yield Image(image, Path(outside("buildah", "mount", container)))
    finally:
        outside("buildah", "rm", container)
