"""Puts one Python program into its cage, then becomes it. Run by `sandbox.py` as `python -I launch.py PLAN PROGRAM`.

A script of its own, since limits set between fork and exec of a process with threads (torch's, the event loop's) can
deadlock. Only the standard library, and no other module of ours.

PLAN is a JSON object: `work` (the working directory), `uid` (whom to become, null to stay), `search` (whether that user
needs a right to reach the interpreter), and `limits`, resource name -> value. What the kernel does not permit is left
out here; `sandbox.probe` finds out what holds.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys

# From <sched.h>, <sys/mount.h>, <sys/prctl.h>, <fcntl.h>; os.unshare came with Python 3.12.
NEW_MOUNTS, NEW_IPC, NEW_USERS, NEW_PIDS, NEW_NETWORK = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
MOUNT_SETATTR, READ_ONLY, RECURSIVE, PRIVATE, AT_CWD = 442, 1, 0x8000, 1 << 18, -100
NO_SUID_NO_DEVICES = 0x2 | 0x4
PARENT_DEATH_SIGNAL, KEEP_CAPABILITIES, NO_NEW_PRIVILEGES, AMBIENT, RAISE = 1, 8, 38, 47, 2
CAPABILITY_VERSION, READ_SEARCH = 0x20080522, 2
SIGNALLED = 128
"""Added to the number of the signal that ended the program, as shells do."""


class RefusedError(Exception):
    """The kernel does not permit this."""


def call(function: str, *arguments: object) -> None:
    """A C function that returns 0 where it worked. Raises RefusedError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, function) or getattr(libc, function)(*arguments) != 0:
        raise RefusedError(f"{function}: {os.strerror(ctypes.get_errno())}")


def unshare() -> None:
    """New namespaces: no network, own processes, own mounts. An ordinary user needs a user namespace for that."""
    new = NEW_MOUNTS | NEW_IPC | NEW_PIDS | NEW_NETWORK
    uid, gid = os.getuid(), os.getgid()
    if uid == 0:
        call("unshare", new)
        return
    call("unshare", new | NEW_USERS)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def close_files(work: str, uid: int, file_bytes: int) -> None:
    """Everything becomes read-only but the working directory, which becomes memory that ends with the program."""
    attributes = (ctypes.c_uint64 * 4)(READ_ONLY, 0, PRIVATE, 0)
    call("syscall", MOUNT_SETATTR, AT_CWD, b"/", RECURSIVE, ctypes.byref(attributes), ctypes.sizeof(attributes))
    options = (
        f"size={16 * file_bytes},nr_inodes=1024,mode=0700,uid={uid},gid={uid if os.getuid() == 0 else os.getgid()}"
    )
    call("mount", b"none", work.encode(), b"tmpfs", NO_SUID_NO_DEVICES, options.encode())


def become(uid: int, search: bool) -> None:
    """Leaves root for a user that nobody is: root is exempt from the limit on processes.

    `search` keeps the right to read, and only that, for interpreters that live in root's own folders.
    """
    if search:
        call("prctl", KEEP_CAPABILITIES, 1, 0, 0, 0)
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    if search:
        header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
        sets = (ctypes.c_uint32 * 6)(*[1 << READ_SEARCH] * 3, 0, 0, 0)
        call("capset", header, sets)
        call("prctl", AMBIENT, RAISE, READ_SEARCH, 0, 0)


def main() -> None:
    plan, program = json.loads(sys.argv[1]), sys.argv[2]
    uid = plan["uid"]
    with contextlib.suppress(RefusedError, OSError):
        unshare()
        close_files(plan["work"], os.getuid() if uid is None else uid, plan["limits"]["RLIMIT_FSIZE"])
        # The first process of its namespace: it can signal none but itself, and takes its children with it.
        if child := os.fork():
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            os._exit(code if code >= 0 else SIGNALLED - code)
    os.chdir(plan["work"])
    if uid is not None:
        become(uid, plan["search"])
    with contextlib.suppress(RefusedError):
        call("prctl", PARENT_DEATH_SIGNAL, int(signal.SIGKILL), 0, 0, 0)
        call("prctl", NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    for name, value in plan["limits"].items():
        with contextlib.suppress(ValueError, OSError, AttributeError):  # macOS knows fewer
            resource.setrlimit(getattr(resource, name), (value, value))
    os.execv(sys.executable, [sys.executable, "-I", "-B", program])


if __name__ == "__main__":
    main()
