"""The outermost layer around every HTTP call: key, drain, errors, metrics and the log. Plain ASGI."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any, Protocol

import structlog
from starlette.exceptions import HTTPException
from starlette.routing import Router
from starlette.types import Message, Receive, Scope, Send

from service.api import errors as native
from service.api.auth import ANONYMOUS, authenticate, is_protected, is_work
from service.api.body import CallerGone
from service.api.call import Reply, Service, now, send_reply
from service.api.oip import errors as oip
from service.api.routes import DirectTable
from service.errors import CarouselError, Draining, MethodNotAllowed, RouteNotFound

CALLER_GONE = 499
NO_ROUTE = "none"

log = structlog.get_logger(__name__)


class Edge:
    """Whatever goes wrong in a call is told here, in the form of its address; also what nobody foresaw."""

    def __init__(self, router: Router, service: Service) -> None:
        self._router = router
        self._service = service
        self._direct = DirectTable(router.routes)
        self._logs_all = service.settings.log_level == "debug"
        self._observers: dict[tuple[str, str, int], tuple[Callable[[], None], Callable[[float], None]]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begin = perf_counter()
        method: str = scope["method"]
        scope["arrived_at"] = now()
        if method == "HEAD":
            # every GET address answers HEAD alike, without the body; uvicorn looks at its own scope, which stays HEAD
            scope, send = {**scope, "method": "GET"}, _without_body(send)
        started = 0

        async def watched_send(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = message["status"]
                if self._service.draining:  # so that callers who keep connections move on
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            try:
                await send(message)
            except Exception as error:  # a write to a connection that was closed meanwhile: each loop has its own class
                raise CallerGone from error

        status = await self._answer(scope, receive, watched_send, lambda: started)
        self.observe(_route(scope), method, status, perf_counter() - begin, scope.get("tenant"))

    def fail(self, error: CarouselError, path: str) -> Reply:
        """Count an error, and say how it is told at that address."""
        self._service.metrics.errors.labels(error.code).inc()
        return _form(path).problem(error, path)

    def fail_unforeseen(self, route: str, method: str, path: str) -> Reply:
        """Log and count the error that is being handled, which nobody foresaw, and say how it is told."""
        log.exception("request_failed", route=route, method=method)
        self._service.metrics.errors.labels("internal_error").inc()
        return _form(path).internal_problem(path)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, started: Callable[[], int]) -> int:
        try:
            await self._admit(scope, receive, send)
            return started()
        except CallerGone:
            return CALLER_GONE
        except CarouselError as error:
            reply = self.fail(error, scope["path"])
        except HTTPException as error:  # the router's own
            reply = self.fail(_router_error(error, scope), scope["path"])
        except Exception:
            reply = self.fail_unforeseen(_route(scope), scope["method"], scope["path"])
        if not started():
            try:
                await send_reply(send, reply)
            except CallerGone:
                return CALLER_GONE
        return reply.status

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        service, path = self._service, scope["path"]
        if not is_protected(path):
            scope["tenant"] = ANONYMOUS
            await self._router(scope, receive, send)
            return
        scope["tenant"] = authenticate(scope, service.tenants)
        if service.draining and is_work(path):
            raise Draining("The server is shutting down. Send the call to another replica, or again in a moment.")
        service.num_running += 1
        try:
            route = self._direct.find(scope)
            await (route.handle if route else self._router)(scope, receive, send)
        finally:
            service.num_running -= 1

    def observe(self, route: str, method: str, status: int, seconds: float, tenant: str | None) -> None:
        """Count an answered call, and log it if it failed or everything is logged."""
        key = (route, method if route != NO_ROUTE else "any", status)
        if key not in self._observers:
            metrics = self._service.metrics
            count = metrics.http_requests.labels(route, key[1], status)
            self._observers[key] = count.inc, metrics.http_seconds.labels(route).observe
        inc, observe = self._observers[key]
        inc()
        observe(seconds)
        if status < 400 and not self._logs_all:
            return
        note = log.debug if status < 400 else log.info
        note("request", route=route, method=method, status=status, seconds=round(seconds, 6), tenant=tenant)


class _Form(Protocol):
    """How errors are told at an address."""

    def problem(self, error: CarouselError, instance: str, /) -> Reply: ...
    def internal_problem(self, instance: str, /) -> Reply: ...


def _form(path: str) -> _Form:
    return oip if oip.is_oip(path) else native


def _route(scope: Scope) -> str:
    # the pattern, never the path: ids in it would make a new time series each
    return getattr(scope.get("route"), "path", NO_ROUTE)


def _router_error(error: HTTPException, scope: Scope) -> CarouselError:
    if error.status_code == 405:
        allowed = _allowed_methods(scope)
        return MethodNotAllowed(
            f"Expected {' or '.join(allowed)}, got {scope['method'][:20]}.",
            expected=allowed,
            received=scope["method"][:20],
        )
    return RouteNotFound("There is nothing at this address. /docs lists the addresses of this server.")


def _allowed_methods(scope: Scope) -> list[str]:
    routes: list[Any] = scope["app"].routes
    allowed = {method for route in routes if route.path_regex.match(scope["path"]) for method in route.methods}
    return sorted(allowed | {"HEAD"} if "GET" in allowed else allowed)


def _without_body(send: Send) -> Send:
    async def send_head(message: Message) -> None:
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

    return send_head
