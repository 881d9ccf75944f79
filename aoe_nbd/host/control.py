# SPDX-License-Identifier: BSD-3-Clause
"""The control socket of a running bridge (or supervisor): who asks, and who answers.

A Unix stream socket that only its owner may use. A question is one line of JSON, `{"do": "status"}` with whatever
arguments the verb takes; the answer is one line too: `{"ok": true, …}`, or `{"ok": false, "error": "one sentence"}`.

The server must not get in the way of the disk: a fixed number of threads, made before there is any shortage of memory,
each serves one client at a time; lines are bounded, and a client that neither reads nor writes is dropped.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
import stat
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

log = logging.getLogger("aoe_nbd")

QUESTION_MOST = 64 << 10  # bytes of one question
ANSWER_MOST = 16 << 20  # bytes of one answer that a client takes
WORKERS = 6  # clients at once; more wait. A supervisor, a barrier and a monitor may each stay for long
IDLE = 5.0  # s in which a client must have sent its whole question, or taken its whole answer
PATIENCE = 30.0  # s that a client waits for an answer, on top of what the verb itself may take
_LISTEN = 60.0  # s that one `wait` lasts at most, for nobody tells the server that its client has gone meanwhile
WAIT_MOST = 600.0  # s that `timeout` of a verb may be

Handler = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class ControlError(OSError):
    """A question that could not be put, or was refused: an errno, and one sentence."""


def _sentence(error: BaseException) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


class Server:
    """Answers questions at `path`. The handler of a verb gets the question, and its result is sent with `"ok": true` added.

    A handler refuses by raising ControlError, or any OSError or ValueError with one sentence. It runs in one of the server's
    threads and may block, but must look at `closing` from time to time then.
    """

    def __init__(self, path: str, handlers: Mapping[str, Handler]) -> None:
        """Make the socket, in place of a stale one. Raises ControlError. Nobody is answered before `start`."""
        self.path, self._handlers = os.path.abspath(path), dict(handlers)
        self.closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._clients: set[socket.socket] = set()
        self._listener = _listen(self.path)
        self.name = self._listener.getsockname()  # what both ends' sockets are called, and no others of this process
        self._inode = os.stat(self.path).st_ino

    def start(self) -> None:
        """Answer from now on, in the process that serves (after any fork)."""
        for number in range(WORKERS):
            thread = threading.Thread(target=self._run, name=f"aoe-control-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def close(self) -> None:
        """Answer nobody any more, and remove the socket if it is still this server's. May be called twice."""
        self.closing.set()
        with contextlib.suppress(OSError):
            if os.stat(self.path).st_ino == self._inode:
                os.unlink(self.path)
        for one in (self._listener, *self._clients):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)  # close() alone would not wake who waits in accept() or recv()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(1.0)
        self._listener.close()

    def _run(self) -> None:
        while not self.closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError as error:
                if self.closing.is_set() or error.errno in (errno.EBADF, errno.EINVAL):
                    return
                time.sleep(0.1)  # such as no file descriptor being left
                continue
            self._clients.add(client)
            try:
                with client, contextlib.suppress(OSError):
                    self._serve(client)
            finally:
                self._clients.discard(client)

    def _serve(self, client: socket.socket) -> None:
        rest = b""
        while not self.closing.is_set():
            line, rest = _receive_line(client, rest, QUESTION_MOST, IDLE)
            if line is None:
                return
            answer = self._answer(line)
            client.settimeout(IDLE)
            client.sendall(json.dumps(answer).encode() + b"\n")

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            question = json.loads(line)
            if not isinstance(question, dict):
                raise ValueError('a question is one JSON object a line, such as {"do": "status"}')
            verb = question.get("do")
            handler = self._handlers.get(verb) if isinstance(verb, str) else None
            if handler is None:
                raise ValueError(f"there is no verb {verb!r} here: {', '.join(sorted(self._handlers))}")
            return {"ok": True, **handler(question)}
        except (OSError, ValueError) as error:
            return {"ok": False, "error": _sentence(error), "errno": getattr(error, "errno", None) or errno.EINVAL}
        except Exception as error:
            log.error("internal error: %s", traceback.format_exc())
            return {"ok": False, "error": f"internal error: {type(error).__name__}: {error}", "errno": errno.EIO}


def _listen(path: str) -> socket.socket:
    """A listening socket at `path` that only this user may connect to. One that nobody listens on any more is replaced."""
    _refuse_occupied(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    fresh = f"{path}.{os.getpid()}"
    try:
        # Bound under another name, and moved once it is complete: nobody ever finds it open to all, or not listening yet.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh)
        listener.bind(fresh)
        os.chmod(fresh, 0o600)
        listener.listen(64)
        os.rename(fresh, path)
    except OSError as error:
        listener.close()
        with contextlib.suppress(OSError):
            os.unlink(fresh)
        raise ControlError(
            error.errno or errno.EINVAL, f"no control socket can be made at {path}: {_sentence(error)}"
        ) from None
    return listener


def _refuse_occupied(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return  # whatever hinders us there, bind will say
    if not stat.S_ISSOCK(mode):
        raise ControlError(errno.EEXIST, f"{path} is there already and is no socket: give another place")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knock:
        knock.settimeout(1.0)
        try:
            knock.connect(path)
        except ConnectionRefusedError:
            return
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ETIMEDOUT):
                return
    raise ControlError(errno.EADDRINUSE, f"another process answers at {path}: end it first, or give another place")


def _receive_line(end: socket.socket, rest: bytes, most: int, patience: float) -> tuple[bytes | None, bytes]:
    """The next line, and what came after it. None at the end of the stream. Raises OSError, TimeoutError after `patience` s."""
    limit = time.monotonic() + patience
    while b"\n" not in rest:
        if len(rest) > most:
            raise OSError(errno.EMSGSIZE, f"a line of more than {most} bytes")
        end.settimeout(max(0.001, limit - time.monotonic()))
        more = end.recv(64 << 10)
        if not more:
            return None, b""
        rest += more
    line, _, rest = rest.partition(b"\n")
    return line, rest


class Client:
    """Puts questions to whoever answers at `path`; `what` names it in error messages."""

    def __init__(self, path: str | os.PathLike[str], what: str = "") -> None:
        self.path = os.fspath(path)
        self.what = what or f"bridge at {self.path}"

    def ask(self, verb: str, **args: Any) -> dict[str, Any]:
        """Ask, and return the answer. Raises ControlError: nobody is there, it does not answer, or it refuses.

        With an argument `timeout` (s) the verb may take that long, and PATIENCE more.
        """
        patience = PATIENCE + float(args.get("timeout", 0) or 0)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as end:
                end.settimeout(PATIENCE)
                end.connect(self.path)
                end.sendall(json.dumps({"do": verb, **args}).encode() + b"\n")
                line, _ = _receive_line(end, b"", ANSWER_MOST, patience)
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            raise ControlError(errno.ENOENT, f"no {self.what} runs here: nothing listens on {self.path}") from None
        except PermissionError:
            raise ControlError(errno.EACCES, f"no permission to ask the {self.what}: run it as root") from None
        except TimeoutError:
            raise ControlError(errno.ETIMEDOUT, f"the {self.what} did not answer within {patience:g} s") from None
        except OSError as error:
            raise ControlError(
                error.errno or errno.EIO, f"the {self.what} cannot be asked by {self.path}: {_sentence(error)}"
            ) from None
        if line is None:
            raise ControlError(errno.ECONNRESET, f"the {self.what} ended before it had answered")
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ControlError(errno.EPROTO, f"the {self.what} answers nonsense: is {self.path} a control socket?")
        if not answer.pop("ok", False):
            raise ControlError(int(answer.get("errno") or errno.EIO), str(answer.get("error") or "refused"))
        return answer


def seconds(question: Mapping[str, Any], default: float, name: str = "timeout") -> float:
    """A number of seconds in a question. Raises ValueError."""
    value = question.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= WAIT_MOST:
        raise ValueError(f"{name}={value!r} is not a number of seconds from 0 to {WAIT_MOST:g}")
    return float(value)


class Happening(NamedTuple):
    """One thing that happened: numbered from 1 on, at a time since the epoch."""

    number: int
    at: float
    what: str
    text: str
    more: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        return {"number": self.number, "at": self.at, "what": self.what, "text": self.text, **self.more}


class Feed:
    """The last things that happened, for those who wait to hear of the next (verb `wait`)."""

    def __init__(self, most: int = 256) -> None:
        self._happened: deque[Happening] = deque(maxlen=most)
        self._last = 0
        self._news = threading.Condition()

    def tell(self, what: str, text: str, **more: Any) -> None:
        """It has happened. Never waits for those who listen."""
        with self._news:
            self._last += 1
            self._happened.append(Happening(self._last, time.time(), what, text, more))
            self._news.notify_all()

    def last(self, most: int, **more: Any) -> list[dict[str, Any]]:
        """The last `most` events of which that is true, oldest first."""
        with self._news:
            fitting = [each for each in self._happened if more.items() <= each.more.items()]
        return [each.as_dict() for each in fitting[-most:]]

    def wait(self, question: Mapping[str, Any], closing: threading.Event) -> dict[str, Any]:
        """Answer `{"do": "wait", "since": n, "timeout": s}`: what happened after number n (-1: from now on), once there is any.

        `next` is what to give as `since` the next time; `missed` says that some of it is no longer known. Nothing within the
        timeout (30 s, 60 at most) is an empty list.
        """
        since = question.get("since", -1)
        if isinstance(since, bool) or not isinstance(since, int):
            raise ValueError(f"since={since!r} is not the number of an event")
        limit = time.monotonic() + min(seconds(question, 30.0), _LISTEN)
        with self._news:
            if since < 0:
                since = self._last
            while self._last <= since and not closing.is_set():
                left = limit - time.monotonic()
                if left <= 0:
                    break
                self._news.wait(min(left, 0.5))
            news = [each.as_dict() for each in self._happened if each.number > since]
            missed = bool(self._last > since and len(news) < self._last - since)
            return {"events": news, "next": self._last, "missed": missed}
